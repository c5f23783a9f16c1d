//! Many apps of which nobody asks anything.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result};

use super::{
    Plan,
    gate::Gate,
    load::get,
    place::Xinfu,
    process::{Cores, pause},
};
use crate::command::Stopwatch;

/// What so many apps cost.
pub(super) struct Idle {
    pub(super) apps: usize,
    /// From the start of the program until it serves, in seconds.
    pub(super) start: f64,
    /// The same without any app.
    pub(super) start_empty: f64,
    /// Resident bytes an app, those of a server without apps taken off.
    pub(super) bytes: f64,
    /// The part of a core that it uses.
    pub(super) core: f64,
    /// How long the first fetch of all tokens took, in seconds.
    pub(super) fetched: f64,
}

/// Registers the apps, lets their tokens be fetched, and starts the server again.
pub(super) fn measure(binary: &Path, cores: Cores, plan: &Plan) -> Result<Idle> {
    /// How long a server may be busy with so many apps.
    const LIMIT: Duration = Duration::from_secs(900);
    let apps = plan.apps;
    println!("\n{apps} idle apps");
    let gate = Gate::start(true)?;
    let xinfu = Xinfu::in_memory(binary, &gate.url())?;
    let key = xinfu.add_key()?;

    let watch = Stopwatch::start();
    let (daemon, _) = xinfu.serve("xinfu", cores.server)?;
    let start_empty = watch.elapsed();
    daemon.until_quiet(LIMIT)?;
    let empty = daemon.resident()?;
    daemon.stop()?;

    let watch = Stopwatch::start();
    declare(&xinfu, apps)?;
    println!("  registered, after {:.0} s", watch.elapsed().as_secs_f64());
    let watch = Stopwatch::start();
    let (daemon, _) = xinfu.serve("xinfu", cores.server)?;
    while gate.calls() < apps && watch.elapsed() < LIMIT {
        pause(Duration::from_millis(50));
    }
    daemon.until_quiet(LIMIT)?;
    let fetched = watch.elapsed();
    daemon.stop()?;
    println!("  their tokens are fetched, after {:.0} s", fetched.as_secs_f64());

    let watch = Stopwatch::start();
    let (daemon, host) = xinfu.serve("xinfu", cores.server)?;
    let start = watch.elapsed();
    daemon.until_quiet(LIMIT)?;
    let full = daemon.resident()?;
    let before = daemon.cpu()?;
    pause(Duration::from_secs(plan.watched));
    let spent = daemon.cpu()?.saturating_sub(before);

    for app in [0, apps / 2, apps - 1] {
        let (status, body) = get(&host, &format!("/v1/apps/{}/token", appid(app)), Some(&key))?;
        anyhow::ensure!(status == 200, "the token of app {app}: {status} {body}");
    }
    let calls = gate.calls();
    anyhow::ensure!(calls == apps, "{apps} tokens were asked for {calls} times");
    Ok(Idle {
        apps,
        start: start.as_secs_f64(),
        start_empty: start_empty.as_secs_f64(),
        bytes: full.saturating_sub(empty) as f64 / apps as f64,
        core: spent.as_secs_f64() / plan.watched as f64,
        fetched: fetched.as_secs_f64(),
    })
}

/// The appid of one of many apps.
pub(super) fn appid(number: usize) -> String {
    format!("wx{number:016x}")
}

/// Registers apps by a file that declares them.
pub(super) fn declare(xinfu: &Xinfu, apps: usize) -> Result<()> {
    let secret = xinfu.folder().write("secret", "0123456789abcdef0123456789abcdef")?;
    let mut text = String::new();
    for app in 0..apps {
        writeln!(text, "[[apps]]\nappid = \"{}\"\nsecret_file = \"secret\"", appid(app))?;
    }
    let file = xinfu.folder().write("apps.toml", &text)?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, private)?;
    xinfu.run(&["app", "apply", &file.display().to_string()], "").map(drop).context("register apps")
}
