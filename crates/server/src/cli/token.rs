//! `xinfu token`: the global tokens themselves.

use std::{process::ExitCode, time::Duration};

use broker::{
    CredentialStatus, Drill, Refreshed, TokenError,
    app::{AppKind, Issuer},
    credential::{CredentialKind, Trouble},
    ledger::Api,
};
use clock::Timestamp;
use serde_json::json;

use super::{
    Console, Failure,
    app::{as_json, not_confirmed, row},
    console::{BOLD, RED},
    open::{Open, Place},
    status,
};
use crate::config::span;

/// What to do with tokens.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the token of an app; it is fetched when there is none
    Get {
        /// The appid or alias
        app: String,
        /// Print JSON, with the token's end and generation
        #[arg(long)]
        json: bool,
    },
    /// Say how the tokens are doing, of one app or of all
    Status {
        /// The appid or alias
        app: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask WeChat for the token now, whatever stands against it
    Refresh {
        /// The appid or alias
        app: String,
        /// End a token that leaked: two forced refreshes, 31 seconds apart
        #[arg(long)]
        kill_leaked: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs it.
pub(crate) async fn run(
    command: Command,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let open = place.open().await?;
    let result = match command {
        Command::Get { app, json } => get(&open, &app, json, console).await,
        Command::Status { app, json } => list(&open, app.as_deref(), json, console),
        Command::Refresh { app, kill_leaked, yes } => {
            refresh(&open, &app, kill_leaked, yes, console).await
        }
    };
    open.finish().await;
    result
}

async fn get(
    open: &Open,
    app: &str,
    json: bool,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let entry = open.app(app)?;
    let view = open.broker.token(&entry, None, Duration::ZERO).await?;
    open.broker.audit_token_read(&entry, &open.actor).await?;
    let token = view.token.expose();
    if json {
        let shown = json!({
            "access_token": token,
            "expires_in": view.expires_in.as_secs(),
            "expires_at": view.expires_at.as_secs(),
            "generation": view.generation,
        });
        console.print(&shown.to_string())?;
    } else {
        console.print(token)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(
    open: &Open,
    app: Option<&str>,
    json: bool,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let apps = match app {
        Some(app) => vec![open.app(app)?],
        None => open.apps(),
    };
    if json {
        let all: Vec<_> = apps.iter().map(|entry| as_json(&open.broker, entry)).collect();
        let shown =
            if app.is_some() { all.into_iter().next().unwrap_or_default() } else { json!(all) };
        console.print(&shown.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = open.broker.now();
    let mut rows = vec![row(["APP", "CREDENTIAL", "GENERATION", "STATE"])];
    for entry in &apps {
        let settings = entry.app();
        let name = settings.alias.as_deref().unwrap_or(settings.id.as_str());
        for status in status::of_app(&open.broker, entry) {
            rows.push(row([
                name,
                status.kind.as_str(),
                &status.generation.map_or_else(|| "-".to_owned(), |number| number.to_string()),
                &status::in_words(&status, now),
            ]));
        }
    }
    console.table(&rows)?;
    Ok(ExitCode::SUCCESS)
}

async fn refresh(
    open: &Open,
    app: &str,
    kill_leaked: bool,
    yes: bool,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let entry = open.app(app)?;
    if entry.app().kind == AppKind::Website {
        return Err(TokenError::NoSuchCredential.into());
    }
    let refreshed = if kill_leaked {
        explain_the_drill(entry.app().issuer, entry.app().kind, console)?;
        if !yes && !console.confirm("Go on?")? {
            return Err(not_confirmed());
        }
        let now = open.broker.now();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let drill = open.broker.kill_leaked(&entry, &open.actor, move |step| {
            // Nobody listens any more only when this command has ended.
            let _ = tell.send(step);
        });
        let speak = async {
            while let Some(step) = told.recv().await {
                console.say(&step_in_words(&step, now))?;
            }
            Ok::<_, Failure>(())
        };
        let (refreshed, spoken) = tokio::join!(drill, speak);
        spoken?;
        refreshed?
    } else {
        open.broker.refresh_now(&entry, &open.actor).await?
    };
    if let Refreshed::Failed(trouble) = &refreshed {
        let all = status::of_app(&open.broker, &entry);
        let token = all.iter().find(|status| status.kind == CredentialKind::Token);
        tell_trouble(trouble, token, open.broker.now(), console)?;
        return Ok(ExitCode::FAILURE);
    }
    tell_outcome(&refreshed, entry.app().issuer, open.broker.now(), console)?;
    Ok(ExitCode::SUCCESS)
}

fn explain_the_drill(issuer: Issuer, kind: AppKind, console: &mut Console) -> Result<(), Failure> {
    let (api, calls) = match issuer {
        Issuer::Stable => (Api::StableForce, "forced refreshes"),
        Issuer::Classic => (Api::Token, "token calls"),
    };
    let cost = format!("it costs 2 of WeChat's {} {calls} a day", api.quota(kind));
    console.say(&format!(
        "{BOLD}This ends every token of the app that anybody holds.{BOLD:#}\n\
         WeChat kills a leaked token only with a second new one: two are asked for, 31 seconds apart; {cost}.\n\
         Calls in flight with the old token fail. Services that read their token here get the new one\n\
         with the next read; whoever keeps an old one must read again."
    ))?;
    Ok(())
}

fn step_in_words(step: &Drill, now: Timestamp) -> String {
    match step {
        Drill::Replaced(generation) => format!(
            "first new token: generation {generation}; the leaked one may work for up to 5 minutes more"
        ),
        Drill::WaitingUntil(at) => {
            format!(
                "waiting for {} before the second one, as WeChat demands",
                span::words(at.since(now))
            )
        }
        Drill::Killed(generation) => {
            format!("second new token: generation {generation}; the leaked one is dead")
        }
    }
}

fn tell_outcome(
    refreshed: &Refreshed,
    issuer: Issuer,
    now: Timestamp,
    console: &mut Console,
) -> Result<(), Failure> {
    match refreshed {
        Refreshed::New { generation, expires_at } => {
            let until = status::when(*expires_at, now);
            console.say(&format!("generation {generation} is in use, until {until}"))?;
        }
        Refreshed::Same { generation, expires_at } => {
            let until = status::when(*expires_at, now);
            console.say(&format!(
                "WeChat answers with the token we have: generation {generation}, until {until}"
            ))?;
            if issuer == Issuer::Stable {
                console.hint("`--kill-leaked` ends it, should it have leaked")?;
            }
        }
        // Told by itself.
        Refreshed::Failed(_) => {}
    }
    Ok(())
}

/// Tells why refreshing failed, and what happens next: a running server goes by what is recorded of
/// the token, and a failure that only the person here has seen is not.
fn tell_trouble(
    trouble: &Trouble,
    token: Option<&CredentialStatus>,
    now: Timestamp,
    console: &mut Console,
) -> Result<(), Failure> {
    console.say(&format!("{RED}error:{RED:#} {}", trouble.reason))?;
    if let Some(action) = &trouble.action {
        console.hint(action)?;
    }
    console.say(&what_happens_next(trouble, token, now))?;
    Ok(())
}

fn what_happens_next(
    trouble: &Trouble,
    token: Option<&CredentialStatus>,
    now: Timestamp,
) -> String {
    let left = token.filter(|token| status::is_usable(token, now));
    let recorded = token.and_then(|token| token.trouble.as_ref());
    let next = match (left, recorded) {
        (Some(token), None) => token.refresh_at,
        (_, recorded) => recorded.unwrap_or(trouble).retry_at,
    };
    let next = match next {
        Some(at) if at > now => {
            format!("a running server tries again at {}", status::when(at, now))
        }
        Some(_) => "a running server tries again at once".to_owned(),
        None => "a running server does not try again before the app is changed, or somebody asks \
                 as you did"
            .to_owned(),
    };
    match left.and_then(|token| token.expires_at) {
        Some(end) => format!(
            "the token in use goes on being served, until {}; {next}",
            status::when(end, now)
        ),
        None => next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_goes_by_what_is_recorded() {
        let now = Timestamp::from_secs(1_767_225_600);
        let at = |seconds| now + Duration::from_secs(seconds);
        let trouble = |retry_at| Trouble {
            errcode: Some(40_125),
            reason: "wrong".to_owned(),
            errmsg: None,
            rid: None,
            action: None,
            since: now,
            last: now,
            failures: 1,
            retry_at,
            only_here: false,
        };
        let token = |trouble: Option<Trouble>, dead| CredentialStatus {
            kind: CredentialKind::Token,
            generation: Some(1),
            expires_at: Some(at(7_200)),
            refresh_at: Some(at(6_600)),
            dead,
            trouble,
        };
        let stopped = trouble(None);
        let said = what_happens_next(&stopped, Some(&token(None, false)), now);
        assert!(said.contains("goes on being served") && said.contains("(in 2 h)"), "{said}");
        assert!(said.contains("tries again at") && said.contains("(in 1 h 50 min)"), "{said}");
        let recorded = token(Some(trouble(Some(at(60)))), false);
        let said = what_happens_next(&trouble(Some(at(60))), Some(&recorded), now);
        assert!(said.contains("goes on being served") && said.contains("(in 1 min)"), "{said}");
        for token in [token(Some(stopped.clone()), true), token(Some(stopped.clone()), false)] {
            let said = what_happens_next(&stopped, Some(&token), now);
            assert!(said.contains("does not try again"), "{said}");
            assert_eq!(said.contains("being served"), !token.dead, "{said}");
        }
        let said = what_happens_next(&stopped, None, now);
        assert!(said.starts_with("a running server does not try again"), "{said}");
    }
}
