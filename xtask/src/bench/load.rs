//! Loading a server, and reading what wrk and redis-benchmark say about it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::process::PATIENCE;
use crate::command::Call;

/// What is asked of a server.
pub(super) enum Load {
    /// A GET of HTTP.
    Http {
        /// Host and port.
        host: String,
        /// Path and query.
        path: String,
        /// The client key, where one is needed.
        key: Option<String>,
        /// What the answer must be.
        wanted: Wanted,
    },
    /// A GET of Redis.
    Redis {
        /// Where it is.
        port: u16,
        /// What the answer must be.
        value: String,
    },
}

/// What a right answer is.
pub(super) enum Wanted {
    /// One of this body.
    Body(String),
    /// One whose body holds this.
    Part(String),
}

/// What a client saw in one sample; times in microseconds.
#[derive(Debug, PartialEq)]
pub(super) struct Loaded {
    pub(super) requests: f64,
    pub(super) rate: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Load {
    /// Asks once, and checks the answer.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Http { host, path, key, wanted } => {
                let (status, body) = get(host, path, key.as_deref())?;
                let is_right = match wanted {
                    Wanted::Body(wanted) => body == *wanted,
                    Wanted::Part(part) => body.contains(part),
                };
                if status != 200 || !is_right {
                    bail!("the answer is not the right one: {status} {body}");
                }
            }
            Self::Redis { port, value } => {
                let answer = redis(*port, &["GET", "token"])?;
                if answer != format!("${}\r\n{value}\r\n", value.len()) {
                    bail!("the answer is not the right one: {answer}");
                }
            }
        }
        Ok(())
    }

    /// Asks from a core over so many connections for so many seconds.
    pub(super) fn run(&self, core: usize, connections: usize, seconds: u64) -> Result<Loaded> {
        let (core, connections) = (core.to_string(), connections.to_string());
        let on_core = |line: &[&str]| {
            let line = [&["-c", &core], line].concat();
            Call::new("taskset", Path::new("/"), line).stdout()
        };
        match self {
            Self::Http { host, path, key, .. } => {
                let (seconds, url) = (format!("{seconds}s"), format!("http://{host}{path}"));
                let header = key.as_ref().map(|key| format!("Authorization: Bearer {key}"));
                let mut line = vec!["wrk", "-t1", "-c", &connections, "-d", &seconds];
                line.extend(["--latency", "--timeout", "5s"]);
                if let Some(header) = &header {
                    line.extend(["-H", header]);
                }
                line.push(&url);
                wrk(&on_core(&line)?)
            }
            Self::Redis { port, .. } => {
                let port = port.to_string();
                let run = |requests: u64| {
                    let requests = requests.to_string();
                    let line = ["redis-benchmark", "-e", "--csv", "-h", "127.0.0.1", "-p", &port];
                    let line = [&line[..], &["-c", &connections, "-n", &requests]].concat();
                    let text = on_core(&[&line[..], &["GET", "token"]].concat())?;
                    redis_benchmark(&text, requests.parse()?)
                };
                // It takes a number of requests and no time, so a short run tells the number.
                let rate = run(2_000)?.rate;
                run((rate * seconds as f64).max(2_000.0) as u64)
            }
        }
    }
}

/// Reads what wrk prints; any answer but a good one is an error.
fn wrk(text: &str) -> Result<Loaded> {
    if let Some(line) =
        text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"))
    {
        bail!("wrk saw errors: {}", line.trim());
    }
    let after = |start: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(start));
        line.and_then(|line| line.split_whitespace().next())
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in "));
    let number = |word: Option<&str>| -> Result<f64> {
        let word = word.with_context(|| format!("wrk prints something else:\n{text}"))?;
        word.parse().with_context(|| format!("wrk prints `{word}`"))
    };
    let time = |word: Option<&str>| -> Result<f64> {
        let word = word.unwrap_or_default();
        for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
            if let Some(value) = word.strip_suffix(unit) {
                return Ok(number(Some(value))? * factor);
            }
        }
        bail!("wrk prints `{word}` for a time")
    };
    Ok(Loaded {
        requests: number(requests.map(|(count, _)| count))?,
        rate: number(after("Requests/sec:"))?,
        p50: time(after("50%"))?,
        p99: time(after("99%"))?,
    })
}

/// Reads what redis-benchmark prints with `--csv`.
fn redis_benchmark(text: &str, requests: f64) -> Result<Loaded> {
    let row = text.lines().last().unwrap_or_default();
    let fields: Vec<f64> =
        row.split(',').skip(1).map_while(|field| field.trim_matches('"').parse().ok()).collect();
    let [rate, _average, _least, p50, _p95, p99, _most] = fields[..] else {
        bail!("redis-benchmark prints something else:\n{text}");
    };
    Ok(Loaded { requests, rate, p50: p50 * 1e3, p99: p99 * 1e3 })
}

/// Makes one call over a connection of its own, and answers status and body.
pub(super) fn get(host: &str, path: &str, key: Option<&str>) -> Result<(u16, String)> {
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}Connection: close\r\n\r\n");
    let mut stream = connect(host)?;
    stream.write_all(head.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer is cut off")?;
    let status = head.split(' ').nth(1).context("the answer has no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Connects to a server that must answer in time.
pub(super) fn connect(host: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Stores the value that is read from Redis.
pub(super) fn store_value(port: u16, value: &str) -> Result<()> {
    match redis(port, &["SET", "token", value])?.as_str() {
        "+OK\r\n" => Ok(()),
        answer => bail!("Redis takes no value: {answer}"),
    }
}

fn redis(port: u16, words: &[&str]) -> Result<String> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    // It hangs up after this, so that the whole answer can be read to its end.
    command.push_str("*1\r\n$4\r\nQUIT\r\n");
    let mut stream = connect(&format!("127.0.0.1:{port}"))?;
    stream.write_all(command.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let answer = answer.strip_suffix("+OK\r\n").context("Redis did not part in good order")?;
    Ok(answer.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n  \
        Latency Distribution\n     50%  391.00us\n     75%  410.00us\n     90%  433.00us\n     \
        99%    1.02ms\n  163840 requests in 1.00s, 50.00MB read\nRequests/sec: 163012.50\n";

    #[test]
    fn wrk_is_read() {
        let loaded = wrk(WRK).expect("it is complete");
        let wanted = Loaded { requests: 163_840.0, rate: 163_012.5, p50: 391.0, p99: 1020.0 };
        assert_eq!(loaded, wanted);
    }

    #[test]
    fn an_error_that_wrk_saw_is_an_error() {
        for line in [
            "  Non-2xx or 3xx responses: 1\n",
            "  Socket errors: connect 0, read 1, write 0, timeout 0\n",
        ] {
            assert!(wrk(&format!("{WRK}{line}")).is_err(), "{line}");
        }
        assert!(wrk("").is_err());
    }

    #[test]
    fn redis_benchmark_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
            \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
            \"GET token\",\"125000.00\",\"0.267\",\"0.080\",\"0.255\",\"0.383\",\"0.455\",\"1.000\"\n";
        let loaded = redis_benchmark(text, 1e5).expect("it is complete");
        assert_eq!(loaded, Loaded { requests: 1e5, rate: 125_000.0, p50: 255.0, p99: 455.0 });
        assert!(redis_benchmark("ERR", 1.0).is_err());
    }
}
