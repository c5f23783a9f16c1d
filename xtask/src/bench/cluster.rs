//! Replicas on one PostgreSQL, with many apps whose tokens rotate quickly: what a rotation costs the
//! store, how soon the others serve a new token, and how the work is shared.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{
    figures::median,
    idle::{appid, declare},
    load::get,
    place::{Folder, Xinfu, free_ports, nginx},
    process::{Cores, Daemon, pause},
    report::{self, Language},
    tools,
};
use crate::{
    command::{Seconds, Stopwatch},
    servers::{Certificates, Postgres},
};

/// How much is done.
struct Plan {
    replicas: &'static [usize],
    apps: usize,
    /// Of so many apps new tokens are waited for at each replica.
    polled: usize,
    /// Tokens live for so long, in seconds, and are fetched anew after half of it.
    life: u64,
    /// For how long all is watched, in seconds: so long that each token rotates once.
    watched: u64,
    writes: bool,
}

const FULL: Plan =
    Plan { replicas: &[1, 2, 4], apps: 10_000, polled: 100, watched: 150, life: 300, writes: true };
/// Enough to see that everything works.
const SMOKE: Plan =
    Plan { replicas: &[2], apps: 200, polled: 10, life: 30, watched: 15, writes: false };

/// What so many replicas did.
struct Figures {
    replicas: usize,
    /// How long all first fetches took, in seconds.
    fetched: f64,
    fetches: u64,
    rotations: u64,
    /// What a rotation took: statements, transactions, bytes of the write-ahead log.
    statements: f64,
    transactions: f64,
    written: f64,
    /// Processor time of a rotation, in microseconds: all replicas, the database.
    cpu: [f64; 2],
    /// From the first replica that serves a new token until the last one does, in milliseconds.
    wake: Option<[f64; 3]>,
    /// The part of the fetches that the busiest replica made.
    busiest: f64,
    /// Resident bytes of a replica, the median.
    memory: f64,
    connections: u64,
}

/// Runs the benchmark as these arguments ask.
pub(super) fn run(root: &Path, args: &[&str]) -> Result<()> {
    let plan = match args {
        [] => FULL,
        ["--smoke"] => SMOKE,
        _ => bail!("`bench cluster` takes `--smoke`, not `{}`", args.join(" ")),
    };
    let watch = Stopwatch::start();
    tools::install(root)?;
    crate::servers::install_postgres(root)?;
    super::process::allow_files(root, 10_000)?;
    let binary = tools::build(root)?;
    let bench = Bench::start(binary, plan.life)?;
    let mut all = Vec::new();
    for replicas in plan.replicas {
        all.push(bench.measure(*replicas, &plan).with_context(|| format!("{replicas} replicas"))?);
    }
    print!("\n{}", table(&all, &plan, Language::English));
    println!("\nbench cluster: every answer was right, {}", Seconds(watch.elapsed()));
    if !plan.writes {
        return Ok(());
    }
    let machine = tools::machine(root, Cores::of_this_process()?)?;
    report::write(root, "docs/scale", |language| {
        let command = language.pick("command", "命令");
        let on = language.pick("machine", "机器");
        format!(
            "{}\n{command}: `cargo xtask bench cluster`. {on}: {}, {} × CPU, {:.1} GB, {}; {}.\n",
            table(&all, &plan, language),
            machine.cpu,
            machine.cores,
            machine.memory,
            machine.kernel,
            machine.date
        )
    })
}

/// What all runs share.
struct Bench {
    binary: PathBuf,
    wechat: String,
    postgres: Postgres,
    _nginx: Daemon,
    // Last, so that the servers have ended when it goes.
    _folder: Folder,
}

impl Bench {
    fn start(binary: PathBuf, life: u64) -> Result<Self> {
        let folder = Folder::new()?;
        let [port] = free_ports::<1>()?;
        let wechat = format!("127.0.0.1:{port}");
        // A new token each time, as long as a real one.
        let conf = format!(
            "server {{\nlisten {wechat} backlog=4096;\n\
             location = /calls {{ stub_status; }}\n\
             location / {{ return 200 '{{\"access_token\":\"83_${{request_id}}{}\",\"expires_in\":{life}}}'; }}\n}}\n",
            "x".repeat(101)
        );
        let nginx = nginx("wechat", None, &folder, &conf)?;
        let tls = Certificates::new(&folder)?;
        let settings = ["shared_preload_libraries=pg_stat_statements", "fsync=on"];
        let postgres = Postgres::start("postgres", &folder, &tls, &[], &settings)?;
        Ok(Self { binary, wechat, postgres, _nginx: nginx, _folder: folder })
    }

    /// How often WeChat was asked, this question included.
    fn calls(&self) -> Result<u64> {
        let (_, text) = get(&self.wechat, "/calls", None)?;
        let line = text.lines().nth(2).context("nginx tells nothing")?;
        Ok(line.split_whitespace().nth(2).context("nginx tells no number")?.parse()?)
    }

    fn measure(&self, replicas: usize, plan: &Plan) -> Result<Figures> {
        const LIMIT: Duration = Duration::from_secs(600);
        println!("\n{replicas} replicas, {} apps", plan.apps);
        let name = format!("bench{replicas}");
        self.postgres.ask("postgres", &format!("CREATE DATABASE {name}"))?;
        self.postgres.ask(&name, "CREATE EXTENSION pg_stat_statements")?;
        let ask = |sql: &str| self.postgres.ask(&name, sql);
        let number = |sql: &str| -> Result<f64> { Ok(ask(sql)?.trim().parse()?) };
        let xinfu = Xinfu::new(&self.binary, &format!("http://{}", self.wechat))?
            .with("XINFU_STORE", self.postgres.url(&name));
        declare(&xinfu, plan.apps)?;
        let key = xinfu.add_key()?;

        let watch = Stopwatch::start();
        let (mut daemons, mut hosts, mut admins) = (Vec::new(), Vec::new(), Vec::new());
        for name in &["xinfu-1", "xinfu-2", "xinfu-3", "xinfu-4"][..replicas] {
            let [port] = free_ports::<1>()?;
            let admin = format!("127.0.0.1:{port}");
            let (daemon, host) = xinfu.serve_with(name, &[("XINFU_LISTEN_ADMIN", &admin)])?;
            daemons.push(daemon);
            hosts.push(host);
            admins.push(admin);
        }
        let rotations = || number("SELECT coalesce(sum(generation), 0) FROM credentials");
        while rotations()? < plan.apps as f64 {
            ensure!(watch.elapsed() < LIMIT, "the first tokens take too long");
            pause(Duration::from_millis(250));
        }
        let fetched = watch.elapsed().as_secs_f64();
        println!("  all tokens are there, after {fetched:.0} s");

        let polls = Polls::start(&hosts, &key, plan.polled)?;
        let cpu = || -> Result<[f64; 2]> {
            let mut ours = 0.0;
            for daemon in &daemons {
                ours += daemon.cpu()?.as_secs_f64();
            }
            Ok([ours, self.postgres.daemon.cpu()?.as_secs_f64()])
        };
        let transactions = "SELECT xact_commit FROM pg_stat_database \
                            WHERE datname = current_database()";
        let log = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn";
        let shares = || admins.iter().map(|host| fetches_of(host)).collect::<Result<Vec<_>>>();
        ask("SELECT pg_stat_statements_reset()")?;
        let before = (rotations()?, self.calls()?, number(transactions)?, number(log)?, cpu()?);
        let shares_before = shares()?;
        pause(Duration::from_secs(plan.watched));
        let shares_after = shares()?;
        let after = (rotations()?, self.calls()?, number(transactions)?, number(log)?, cpu()?);
        let statements = number(
            "SELECT sum(calls) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
             WHERE datname = current_database() AND query NOT LIKE '%pg_stat%'",
        )?;
        let connections = number(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND pid <> pg_backend_pid()",
        )?;
        let wake = polls.end()?;
        let rotated = after.0 - before.0;
        ensure!(rotated > 0.0, "nothing rotated");
        let made: Vec<f64> =
            shares_after.iter().zip(&shares_before).map(|(after, before)| after - before).collect();
        let memory = daemons.iter().map(|it| it.resident().map(|bytes| bytes as f64));
        let memory = memory.collect::<Result<Vec<_>>>()?;
        Ok(Figures {
            replicas,
            fetched,
            // The second question for the number counted itself.
            fetches: after.1 - before.1 - 1,
            rotations: rotated as u64,
            statements: statements / rotated,
            transactions: (after.2 - before.2) / rotated,
            written: (after.3 - before.3) / rotated,
            cpu: [0, 1].map(|at| (after.4[at] - before.4[at]) * 1e6 / rotated),
            wake: (replicas > 1).then_some(wake),
            busiest: made.iter().copied().fold(0.0, f64::max) / made.iter().sum::<f64>(),
            memory: median(memory.into_iter()),
            connections: connections as u64,
        })
    }
}

/// How many fetches a replica has made, by its metrics at this host.
fn fetches_of(host: &str) -> Result<f64> {
    let (status, page) = get(host, "/metrics", None)?;
    ensure!(status == 200, "no metrics: {status}");
    let name = "xinfu_token_refresh_duration_seconds_count ";
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.context("no count of fetches")?.trim().parse()?)
}

/// A replica served a new token of an app for the first time.
struct Seen {
    app: usize,
    generation: u64,
    at: Duration,
}

/// Long polls of some apps at each replica.
struct Polls {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Result<()>>>,
    seen: Receiver<Seen>,
    replicas: usize,
}

impl Polls {
    fn start(hosts: &[String], key: &str, apps: usize) -> Result<Self> {
        let (stop, since) = (Arc::new(AtomicBool::new(false)), Arc::new(Stopwatch::start()));
        let (sender, seen) = channel();
        let mut threads = Vec::new();
        for host in hosts {
            for app in 0..apps {
                let (host, key, sender) = (host.clone(), key.to_owned(), sender.clone());
                let (stop, since) = (Arc::clone(&stop), Arc::clone(&since));
                let poll = move || {
                    let mut generation = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let Some(newer) = poll(&host, &key, app, generation)? else { continue };
                        generation = newer;
                        // Nobody listens any more when all is over.
                        let seen = Seen { app, generation, at: since.elapsed() };
                        sender.send(seen).ok();
                    }
                    Ok(())
                };
                threads.push(thread::Builder::new().stack_size(256 * 1024).spawn(poll)?);
            }
        }
        Ok(Self { stop, threads, seen, replicas: hosts.len() })
    }

    /// Ends them. Answers how long it took from the first replica that served a new token to the
    /// last: half of the times, 99 of 100, all, in milliseconds.
    fn end(self) -> Result<[f64; 3]> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a poll panicked"))??;
        }
        let mut by_token: HashMap<(usize, u64), Vec<Duration>> = HashMap::new();
        for Seen { app, generation, at } in self.seen.try_iter() {
            by_token.entry((app, generation)).or_default().push(at);
        }
        let mut times: Vec<f64> = by_token
            .into_iter()
            // The first answer came at once; others may have missed one that was gone by then.
            .filter(|((_, generation), times)| *generation > 1 && times.len() == self.replicas)
            .filter_map(|(_, times)| Some(*times.iter().max()? - *times.iter().min()?))
            .map(|time| time.as_secs_f64() * 1e3)
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        ensure!(times.len() > 5, "only {} rotations were seen by all", times.len());
        Ok([at(0.5), at(0.99), at(1.0)])
    }
}

/// Waits for another generation of an app's token, and answers it, if one comes in time.
fn poll(host: &str, key: &str, app: usize, generation: u64) -> Result<Option<u64>> {
    let path = format!("/v1/apps/{}/token?after={generation}&wait=10", appid(app));
    let (status, body) = get(host, &path, Some(key))?;
    match status {
        204 => Ok(None),
        200 => {
            let body: serde_json::Value = serde_json::from_str(&body)?;
            Ok(Some(body["generation"].as_u64().context("a token has a generation")?))
        }
        _ => bail!("a poll is answered with {status}: {body}"),
    }
}

/// The figures as a table.
fn table(all: &[Figures], plan: &Plan, language: Language) -> String {
    let pick = |english, chinese| language.pick(english, chinese).to_owned();
    let mut heads = vec![pick("replicas", "副本数")];
    heads.extend(all.iter().map(|it| it.replicas.to_string()));
    let row = |what: String, cell: &dyn Fn(&Figures) -> String| {
        [what].into_iter().chain(all.iter().map(cell)).collect::<Vec<_>>()
    };
    let watched = plan.watched;
    let rows = [
        row(pick("all first fetches, s", "首次获取全部 token，秒"), &|it| {
            format!("{:.0}", it.fetched)
        }),
        row(format!("{} ({watched} s)", pick("fetches", "获取次数")), &|it| {
            it.fetches.to_string()
        }),
        row(format!("{} ({watched} s)", pick("rotations", "轮换次数")), &|it| {
            it.rotations.to_string()
        }),
        row(pick("of the fetches, by the busiest replica", "最忙副本所占比例"), &|it| {
            format!("{:.0} %", it.busiest * 100.0)
        }),
        row(pick("statements a rotation", "每次轮换的语句数"), &|it| {
            format!("{:.1}", it.statements)
        }),
        row(pick("transactions a rotation", "每次轮换的事务数"), &|it| {
            format!("{:.1}", it.transactions)
        }),
        row(
            pick("written to the log a rotation, kB", "每次轮换写入的预写日志，kB"),
            &|it| format!("{:.1}", it.written / 1e3),
        ),
        row(
            pick("CPU a rotation, all replicas, ms", "每次轮换全部副本的 CPU，毫秒"),
            &|it| format!("{:.2}", it.cpu[0] / 1e3),
        ),
        row(
            pick("CPU a rotation, PostgreSQL, ms", "每次轮换 PostgreSQL 的 CPU，毫秒"),
            &|it| format!("{:.2}", it.cpu[1] / 1e3),
        ),
        row(
            pick(
                "from the first replica that serves a new token to the last: median, p99, most, ms",
                "从第一个副本给出新 token 到最后一个：中位数、p99、最大，毫秒",
            ),
            &|it| match it.wake {
                Some([half, p99, most]) => format!("{half:.0}, {p99:.0}, {most:.0}"),
                None => "–".to_owned(),
            },
        ),
        row(pick("memory of a replica, MB", "每个副本的内存，MB"), &|it| {
            format!("{:.0}", it.memory / 1e6)
        }),
        row(pick("connections to PostgreSQL", "到 PostgreSQL 的连接数"), &|it| {
            it.connections.to_string()
        }),
    ];
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    report::table(&heads, &rows)
}
