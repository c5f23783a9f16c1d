//! `xinfu doctor`: looks for what is wrong, and says what to do about it.

use std::{io, path::Path, process::ExitCode, sync::Arc, time::Duration};

use broker::{
    AppEntry, Refreshed,
    app::{AppKind, Issuer},
    credential::{CredentialKind, Trouble},
    store::Tables,
};
use clock::{Clock, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Console, Failure,
    console::{BOLD, GREEN, RED, YELLOW},
    open::{Looked, Open, Place, folder_of, look_at_databases, missing_folder},
    serve::cannot_listen,
    status,
};
use crate::{
    config::{LogFormat, Settings, StorePlace, span},
    telemetry,
};

/// What a look at something found.
enum Finding {
    Good(String),
    /// It works, but somebody should know.
    Note(String, Option<String>),
    Bad(String, Option<String>),
}

/// Counts what was found while it is told.
struct Report<'a> {
    console: &'a mut Console,
    notes: usize,
    bad: usize,
}

impl Report<'_> {
    fn tell(&mut self, finding: Finding) -> Result<(), Failure> {
        let (mark, text, hint) = match finding {
            Finding::Good(text) => (format!("{GREEN}ok{GREEN:#}  "), text, None),
            Finding::Note(text, hint) => {
                self.notes += 1;
                (format!("{YELLOW}note{YELLOW:#}"), text, hint)
            }
            Finding::Bad(text, hint) => {
                self.bad += 1;
                (format!("{RED}bad{RED:#} "), text, hint)
            }
        };
        self.console.print(&format!("{mark}  {text}"))?;
        if let Some(hint) = hint {
            self.console.print(&format!("      do this: {hint}"))?;
        }
        Ok(())
    }
}

/// Looks at everything that can be looked at, and ends with a summary.
pub(crate) async fn run(place: &Place<'_>, console: &mut Console) -> Result<ExitCode, Failure> {
    telemetry::start(LogFormat::Human, "off", place.environment)?;
    let mut report = Report { console, notes: 0, bad: 0 };
    let loaded = place.load()?;
    let file = loaded.typed.file().map(|file| file.display().to_string());
    let file = file.unwrap_or_else(|| "the environment".to_owned());
    report.tell(Finding::Good(format!("configuration: {file} is understood")))?;
    for name in &loaded.unknown_variables {
        let text = format!("configuration: `{name}` is set, but no key has this variable");
        report.tell(Finding::Note(text, None))?;
    }
    let settings = loaded.settings;
    let keys_fit = look_at_master_keys(&settings, &mut report)?;
    report.tell(look_at_clock(&settings).await)?;
    report.tell(look_at_listener(&settings).await)?;
    if let Some(finding) = look_at_tls(&settings) {
        report.tell(finding)?;
    }
    if let Some(finding) = look_at_interception(&settings).await {
        report.tell(finding)?;
    }
    if let Some(finding) = look_at_authority(&settings, Clock::real().now()) {
        report.tell(finding)?;
    }
    for (what, remedy) in settings.in_the_clear() {
        report.tell(Finding::Note(what, Some(remedy.to_owned())))?;
    }
    if keys_fit {
        look_at_store(place, &settings, &mut report).await?;
    }

    let Report { notes, bad, console } = report;
    let colour = if bad == 0 { GREEN } else { RED };
    let words = match bad {
        0 => "nothing is wrong".to_owned(),
        1 => "1 thing is wrong".to_owned(),
        _ => format!("{bad} things are wrong"),
    };
    let notes = if notes == 0 { String::new() } else { format!("; {notes} to know about") };
    console.print(&format!("\n{colour}{words}{colour:#}{notes}"))?;
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn look_at_master_keys(settings: &Settings, report: &mut Report<'_>) -> Result<bool, Failure> {
    match settings.sealer() {
        Ok(_) => {
            let ids: Vec<_> = settings.master_keys.iter().map(|key| key.id.as_str()).collect();
            let ids = ids.join("`, `");
            report.tell(Finding::Good(format!(
                "master keys: `{ids}` are readable by their owner only"
            )))?;
            Ok(true)
        }
        Err(err) => {
            report.tell(Finding::Bad(format!("master keys: {}", err.message), err.hint))?;
            Ok(false)
        }
    }
}

/// A clock that is off makes tokens look dead or eternal, and TLS fail.
async fn look_at_clock(settings: &Settings) -> Finding {
    let clock = Clock::real();
    let shown = status::date(clock.now());
    let unknown = |why: &str| {
        let text = format!("clock: it is {shown}; WeChat's could not be read: {why}");
        Finding::Note(text, None)
    };
    let client = match wechat::Client::new(settings.upstream.clone()) {
        Ok(client) => client,
        Err(err) => return unknown(&err.to_string()),
    };
    match client.server_date().await {
        Ok(Some(date)) => {
            compared(clock.now(), &date).unwrap_or_else(|| unknown("its answer has a strange date"))
        }
        Ok(None) => unknown("its answer has no date"),
        Err(err) => unknown(&err.to_string()),
    }
}

/// Our time against the `Date` of an answer, which has whole seconds and was a moment on its way.
fn compared(now: Timestamp, date: &str) -> Option<Finding> {
    const NEAR: u64 = 60;
    let theirs = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    let ahead = now.as_secs() - theirs.as_second();
    let shown = status::date(now);
    let apart = span::words(Duration::from_secs(ahead.unsigned_abs()));
    Some(if ahead.unsigned_abs() <= NEAR {
        Finding::Good(format!("clock: it is {shown}, as WeChat has it"))
    } else {
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        let hint = "set the system's clock, and keep it right with NTP".to_owned();
        Finding::Bad(format!("clock: it says {shown}, {apart} {side} WeChat's"), Some(hint))
    })
}

async fn look_at_listener(settings: &Settings) -> Finding {
    let address = settings.api.address;
    match TcpListener::bind(address).await {
        Ok(_) => Finding::Good(format!("listener: `{address}` is free; no server runs there")),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
            if settings.api.tls.is_some() {
                let text = format!("listener: `{address}` is in use, by what cannot be told");
                let hint = "when that is not xinfu, let `listen.api` name another port";
                Finding::Note(text, Some(hint.to_owned()))
            } else if answers_as_xinfu(&address.to_string()).await {
                Finding::Good(format!("listener: xinfu answers on `{address}`"))
            } else {
                let text = format!("listener: something else answers on `{address}`");
                let hint = "end it, or let `listen.api` name another port".to_owned();
                Finding::Bad(text, Some(hint))
            }
        }
        Err(err) => {
            let failure = cannot_listen("listen.api", address, &err);
            let hint = failure.hints.into_iter().next();
            Finding::Bad(format!("listener: {}", failure.message), hint)
        }
    }
}

fn look_at_tls(settings: &Settings) -> Option<Finding> {
    let files = settings.api.tls.as_ref()?;
    Some(match settings.tls() {
        Ok(_) => {
            let cert = files.cert.display();
            Finding::Good(format!("listener: the certificate `{cert}` and its key fit"))
        }
        Err(err) => Finding::Bad(format!("listener: {err}"), err.hint),
    })
}

/// The address of the listener in WeChat's place.
async fn look_at_interception(settings: &Settings) -> Option<Finding> {
    let address = settings.intercept.as_ref()?.address;
    Some(match TcpListener::bind(address).await {
        Ok(_) => Finding::Good(format!("intercept: `{address}` is free; no server runs there")),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
            let text = format!("intercept: `{address}` is in use, by what cannot be told");
            let hint = "when that is not xinfu, let `listen.intercept` name another address";
            Finding::Note(text, Some(hint.to_owned()))
        }
        Err(err) => {
            let failure = cannot_listen("listen.intercept", address, &err);
            let hint = failure.hints.into_iter().next();
            Finding::Bad(format!("intercept: {}", failure.message), hint)
        }
    })
}

/// The authority of the listener in WeChat's place: services need a new one in time.
fn look_at_authority(settings: &Settings, now: Timestamp) -> Option<Finding> {
    /// As long as it takes to give a new one to every service.
    const NOTICE: Duration = Duration::from_secs(90 * 86_400);
    Some(match settings.authority() {
        Ok(authority) => {
            let until = authority?.until();
            let text = format!("intercept: the authority is good until {}", status::date(until));
            if until.since(now) > NOTICE {
                Finding::Good(text)
            } else {
                let hint = "`xinfu intercept init --dir` with another folder makes a new one; let \
                            services trust both, then let `listen.intercept_ca` name it";
                Finding::Note(text, Some(hint.to_owned()))
            }
        }
        Err(err) => Finding::Bad(format!("intercept: {}", err.message), err.hint),
    })
}

/// Whether a server of ours says there that it is healthy.
async fn answers_as_xinfu(address: &str) -> bool {
    /// More than our answer has.
    const LONGEST: u64 = 8 * 1024;
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(is_our_health(&String::from_utf8_lossy(&answer)))
    };
    let answered = tokio::time::timeout(Duration::from_secs(2), ask).await;
    matches!(answered, Ok(Ok(true)))
}

/// Whether an answer to `/healthz` is one of ours.
fn is_our_health(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let has_id = head.lines().any(|line| line.to_ascii_lowercase().starts_with("x-request-id:"));
    head.starts_with("HTTP/1.1 200") && has_id && body.trim() == r#"{"status":"ok"}"#
}

async fn look_at_store(
    place: &Place<'_>,
    settings: &Settings,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    // Opening a store makes it; whoever looks must not leave one behind.
    if let StorePlace::Sqlite(path) = &settings.store
        && let Some(finding) = missing_store(path)
    {
        return report.tell(finding);
    }
    // Opening it would also bring its tables to our version, beneath servers of an older one.
    let mut current = true;
    for looked in look_at_databases(settings).await {
        if let Some(finding) = about_tables(&looked) {
            report.tell(finding)?;
            current = false;
        }
    }
    if !current {
        return Ok(());
    }
    let open = match place.open_with(settings.clone()).await {
        Ok(open) => open,
        Err(failure) => {
            let hint = failure.hints.into_iter().next();
            return report.tell(Finding::Bad(format!("store: {}", failure.message), hint));
        }
    };
    let fits = format!("store: `{}` opens, and the master keys fit", settings.store);
    report.tell(Finding::Good(fits))?;
    let others: Vec<_> = open.broker.sealing_keys().await?;
    let others: Vec<_> = others.iter().filter(|key| **key != settings.seal_with).collect();
    if !others.is_empty() {
        let text = format!("store: not everything is sealed with `{}` yet", settings.seal_with);
        let hint = "once each server was restarted with that key, run `xinfu rekey`".to_owned();
        report.tell(Finding::Note(text, Some(hint)))?;
    }
    let apps = open.apps();
    if apps.is_empty() {
        let hint = "`xinfu app add APPID` registers one".to_owned();
        report.tell(Finding::Note("apps: none is registered".to_owned(), Some(hint)))?;
    }
    for entry in &apps {
        for finding in look_at_app(&open, entry).await? {
            report.tell(finding)?;
        }
    }
    open.finish().await;
    Ok(())
}

/// Why a database is not looked at further, if that is so.
fn about_tables(Looked { key, database, tables }: &Looked) -> Option<Finding> {
    match tables {
        Ok(Tables::Current) => None,
        Ok(Tables::None) => {
            let text = format!("{key}: `{database}` has no tables yet");
            let hint =
                format!("`xinfu serve` makes them; if there should be some, look at `{key}`");
            Some(Finding::Note(text, Some(hint)))
        }
        Ok(Tables::Older) => {
            let text = format!("{key}: the tables of `{database}` are those of an older version");
            let hint = "`xinfu serve`, and any command but this one, changes them to those of this \
                        version; keep a backup of before";
            Some(Finding::Note(text, Some(hint.to_owned())))
        }
        Err(err) => {
            Some(Finding::Bad(format!("{key}: `{database}` cannot be opened: {err}"), None))
        }
    }
}

fn missing_store(path: &Path) -> Option<Finding> {
    let shown = path.display();
    if path.exists() {
        return None;
    }
    Some(if folder_of(path).is_dir() {
        let hint = "`xinfu serve` creates it; if there should be one, look at `store`".to_owned();
        Finding::Note(format!("store: `{shown}` is not there yet"), Some(hint))
    } else {
        let failure = missing_folder(path);
        Finding::Bad(format!("store: {}", failure.message), failure.hints.into_iter().next())
    })
}

/// Asks WeChat for the token of an app where that harms nobody. On classic that would end the token
/// in use, so there it is fetched only when none is.
async fn look_at_app(open: &Open, entry: &Arc<AppEntry>) -> Result<Vec<Finding>, Failure> {
    let app = Arc::clone(&entry.app());
    let name = match &app.alias {
        Some(alias) => format!("app {} ({alias})", app.id),
        None => format!("app {}", app.id),
    };
    if app.kind == AppKind::Website {
        return Ok(vec![Finding::Good(format!("{name}: a website app has no token to look at"))]);
    }
    let now = open.broker.now();
    if app.issuer == Issuer::Classic && open.broker.token_now(entry, None, Duration::ZERO).is_some()
    {
        let all = status::of_app(&open.broker, entry);
        let token = all.into_iter().find(|status| status.kind == CredentialKind::Token);
        let trouble = token.and_then(|status| status.trouble);
        let mut findings: Vec<_> = trouble.map(|it| explained(&name, it)).into_iter().collect();
        findings.push(Finding::Note(
            format!(
                "{name}: not tried: on classic a fetch would end the live token; \
                 `xinfu token refresh {}` tries it",
                app.id
            ),
            None,
        ));
        return Ok(findings);
    }
    Ok(vec![match open.broker.refresh_now(entry, &open.actor).await? {
        Refreshed::New { expires_at, .. } | Refreshed::Same { expires_at, .. } => {
            let left = span::words(expires_at.since(now));
            Finding::Good(format!("{name}: WeChat answers with a token that lives for {left}"))
        }
        Refreshed::Failed(trouble) => explained(&name, trouble),
    }])
}

fn explained(name: &str, trouble: Trouble) -> Finding {
    let what = match trouble.errcode {
        Some(40013) => "WeChat does not know this appid",
        Some(40125 | 40001) => "the AppSecret is wrong, or was reset in WeChat's console",
        Some(40164) => "the address that xinfu calls from is not on the app's IP whitelist",
        Some(40243) => "the AppSecret is frozen",
        Some(_) => "WeChat refuses",
        None => "no token could be fetched",
    };
    Finding::Bad(format!("{name}: {BOLD}{what}{BOLD:#} ({})", trouble.reason), trouble.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_by_the_minute() {
        let now = Timestamp::from_secs(1_767_225_600);
        let found = |date: &str| compared(now, date);
        for near in ["Thu, 01 Jan 2026 00:01:00 GMT", "Wed, 31 Dec 2025 23:59:00 GMT"] {
            assert!(matches!(found(near), Some(Finding::Good(_))), "{near}");
        }
        for (far, words) in [
            ("Thu, 01 Jan 2026 00:01:01 GMT", "1 min 1 s behind WeChat's"),
            ("Wed, 31 Dec 2025 22:00:00 GMT", "2 h ahead of WeChat's"),
        ] {
            let Some(Finding::Bad(text, Some(_))) = found(far) else { panic!("{far}") };
            assert!(text.contains(words), "{text}");
        }
        assert!(found("yesterday").is_none());
    }

    #[test]
    fn our_own_server_is_known_by_its_answer() {
        let ours = "HTTP/1.1 200 OK\r\nX-Request-Id: 1\r\n\r\n{\"status\":\"ok\"}";
        assert!(is_our_health(ours));
        for other in [
            ours.replace("X-Request-Id", "X-Id"),
            ours.replace("ok\"", "fine\""),
            ours.replace("200", "503"),
            "HTTP/1.1 200 OK\r\n\r\n<html>".to_owned(),
            "SSH-2.0-OpenSSH\r\n".to_owned(),
        ] {
            assert!(!is_our_health(&other), "{other}");
        }
    }
}
