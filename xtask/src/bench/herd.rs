//! Many readers who ask for a token that is being fetched.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    figures::median,
    gate::Gate,
    load::connect,
    place::{APP, TOKEN_ANSWER, Xinfu},
    process::{Cores, PATIENCE},
};
use crate::command::{Call, Stopwatch};

/// How the readers fared; times in milliseconds from when the upstream answered.
pub(super) struct Herd {
    pub(super) readers: usize,
    /// How often the upstream was asked for the token.
    pub(super) calls: usize,
    pub(super) first: f64,
    pub(super) half: f64,
    pub(super) last: f64,
    /// What the server spent on each reader from then on, in microseconds.
    pub(super) cpu: f64,
    /// The same readers on the same connections ask again for the token that is there by now: from
    /// the first question to the last answer.
    pub(super) again: f64,
    /// When the last of so many tasks in one process has gone on, its store in memory.
    pub(super) awake: f64,
}

/// Lets so many readers wait, three times with servers of their own, and answers the medians.
pub(super) fn measure(root: &Path, binary: &Path, cores: Cores, readers: usize) -> Result<Herd> {
    const TIMES: usize = 3;
    println!("\n{readers} readers wait for one token");
    let own = process::id().to_string();
    Call::new("taskset", root, ["-a", "-p", "-c", &cores.client.to_string(), &own]).stdout()?;
    let mut herds = Vec::new();
    for _ in 0..TIMES {
        let herd = once(root, binary, cores, readers)?;
        println!(
            "  the last one had it after {:.1} ms; as a task in one process, after {:.1} ms",
            herd.last, herd.awake
        );
        herds.push(herd);
    }
    let of = |value: fn(&Herd) -> f64| median(herds.iter().map(value));
    Ok(Herd {
        readers,
        calls: herds.iter().map(|herd| herd.calls).max().unwrap_or_default(),
        first: of(|herd| herd.first),
        half: of(|herd| herd.half),
        last: of(|herd| herd.last),
        cpu: of(|herd| herd.cpu),
        again: of(|herd| herd.again),
        awake: of(|herd| herd.awake),
    })
}

/// Lets so many tasks of one process wait, and answers when the last one has gone on.
fn tasks(root: &Path, cores: Cores, readers: usize) -> Result<f64> {
    let cargo =
        ["cargo", "run", "--quiet", "--release", "--package", "broker", "--example", "herd"];
    // They are the server's own: nobody else needs a core.
    let (both, readers) = (format!("{},{}", cores.server, cores.client), readers.to_string());
    let args = [&["-c", &both], &cargo[..], &["--", &readers]].concat();
    let printed = Call::new("taskset", root, args).stdout()?;
    let mut words = printed.split_whitespace();
    let mut after = |name: &str| {
        words.find(|word| *word == name)?;
        words.next()?.parse::<f64>().ok()
    };
    let found = after("last").zip(after("fetches"));
    let (last, fetches) = found.with_context(|| format!("the example printed `{printed}`"))?;
    if fetches != 1.0 {
        bail!("the token was fetched {fetches} times");
    }
    Ok(last)
}

fn once(root: &Path, binary: &Path, cores: Cores, readers: usize) -> Result<Herd> {
    let gate = Gate::start(false)?;
    let xinfu = Xinfu::new(binary, &gate.url())?
        .with("XINFU_LIMITS_CONNECTIONS", (2 * readers).to_string())
        // The readers are all there before the first one asks.
        .with("XINFU_LIMITS_HEADER_READ_TIMEOUT", "60s".to_owned());
    let key = xinfu.add_key()?;
    let (daemon, host) = xinfu.serve("xinfu", cores.server)?;
    let mut streams =
        (0..readers).map(|_| connect(&host)).collect::<Result<Vec<_>>>().context("connect")?;

    // The server follows, and begins to fetch a token; it is held up from here on.
    xinfu.add_app()?;
    gate.until_called(1)?;
    let request = format!(
        "GET /v1/apps/{APP}/token HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n"
    );
    ask(&mut streams, &request)?;
    daemon.until_quiet(PATIENCE)?;

    let before = daemon.cpu()?;
    gate.open();
    let mut times = Vec::with_capacity(readers);
    for stream in &mut streams {
        hear(stream)?;
        times.push(gate.since_answer()?);
    }
    let spent = daemon.cpu()?.saturating_sub(before);
    let calls = gate.calls();
    if calls != 1 {
        bail!("the token was asked for {calls} times");
    }

    let watch = Stopwatch::start();
    ask(&mut streams, &request)?;
    for stream in &mut streams {
        hear(stream)?;
    }
    let again = watch.elapsed();
    times.sort_unstable();
    let at = |index: usize| millis(times.get(index).copied().unwrap_or_default());
    Ok(Herd {
        readers,
        calls,
        first: at(0),
        half: at(readers / 2),
        last: at(readers - 1),
        cpu: spent.as_secs_f64() * 1e6 / readers as f64,
        again: millis(again),
        awake: tasks(root, cores, readers).context("tasks in one process")?,
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ask(streams: &mut [TcpStream], request: &str) -> Result<()> {
    for stream in streams {
        stream.write_all(request.as_bytes())?;
    }
    Ok(())
}

/// Reads one answer, which must be the token.
fn hear(stream: &mut TcpStream) -> Result<()> {
    let token = TOKEN_ANSWER.split('"').nth(3).unwrap_or_default();
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).context("a reader is not answered")?;
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        if text.starts_with("HTTP/1.1 200 ") && text.contains(token) && text.ends_with('}') {
            return Ok(());
        }
        let is_whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('}'));
        if length == 0 || is_whole {
            bail!("a reader heard something else: {text}");
        }
    }
}
