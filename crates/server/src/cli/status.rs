//! How a credential is doing, in words and as JSON.

use broker::{
    AppEntry, Broker, CredentialStatus,
    app::AppKind,
    credential::{CredentialKind, Trouble},
};
use clock::Timestamp;
use serde_json::{Value, json};

use crate::config::span;

/// What a person calls it.
pub(crate) enum State {
    /// A usable generation, and nothing to do before `refresh_at`.
    Fresh,
    /// None yet.
    None,
    /// It should be refreshed by now.
    Due,
    /// WeChat refuses it.
    Dead,
    /// Refreshing failed, and is tried again by itself.
    BackingOff,
    /// Refreshing failed, and only a person can help.
    Stopped,
}

impl State {
    /// The state of a credential.
    pub(crate) fn of(status: &CredentialStatus, now: Timestamp) -> Self {
        match (&status.trouble, status.refresh_at) {
            (Some(Trouble { retry_at: None, .. }), _) => Self::Stopped,
            (Some(_), _) => Self::BackingOff,
            (None, _) if status.dead => Self::Dead,
            (None, None) => Self::None,
            (None, Some(at)) if at <= now => Self::Due,
            (None, Some(_)) => Self::Fresh,
        }
    }

    /// The state as one word.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::None => "none",
            Self::Due => "due",
            Self::Dead => "dead",
            Self::BackingOff => "backing_off",
            Self::Stopped => "stopped",
        }
    }
}

/// Whether there is a generation that works.
pub(crate) fn is_usable(status: &CredentialStatus, now: Timestamp) -> bool {
    !status.dead && status.expires_at.is_some_and(|end| end > now)
}

/// One sentence about a credential.
pub(crate) fn in_words(status: &CredentialStatus, now: Timestamp) -> String {
    let what_is_left = match status.expires_at {
        Some(end) if is_usable(status, now) => {
            format!("the one in use lives for {}", until(end, now))
        }
        _ => "none is left to use".to_owned(),
    };
    match (State::of(status, now), &status.trouble) {
        (State::Stopped, Some(trouble)) => {
            format!("stopped: {}; do this: {}; {what_is_left}", trouble.reason, action(trouble))
        }
        (_, Some(trouble)) => {
            let retry = trouble.retry_at.map(|at| when(at, now)).unwrap_or_default();
            let action = trouble
                .action
                .as_ref()
                .map(|action| format!("; do this: {action}"))
                .unwrap_or_default();
            format!("backing off until {retry}: {}{action}; {what_is_left}", trouble.reason)
        }
        (State::Fresh, None) => {
            let refresh = status.refresh_at.map(|at| when(at, now)).unwrap_or_default();
            format!("fresh, refreshing at {refresh}")
        }
        (State::Dead, None) => "refused by WeChat, to be replaced at once".to_owned(),
        (State::Due, None) => format!("due for a refresh; {what_is_left}"),
        (_, None) => "not fetched yet".to_owned(),
    }
}

/// The credentials of an app; a website app has none.
pub(crate) fn of_app(broker: &Broker, entry: &AppEntry) -> Vec<CredentialStatus> {
    match entry.app().kind {
        AppKind::Website => Vec::new(),
        _ => broker.status(entry),
    }
}

/// One sentence about the global token of an app.
pub(crate) fn token_in_words(broker: &Broker, entry: &AppEntry) -> String {
    let all = of_app(broker, entry);
    if all.is_empty() {
        return "a website app has none".to_owned();
    }
    let token = all.iter().find(|status| status.kind == CredentialKind::Token);
    token.map_or_else(|| "not fetched yet".to_owned(), |status| in_words(status, broker.now()))
}

/// All credentials of an app.
pub(crate) fn as_json(broker: &Broker, entry: &AppEntry) -> Value {
    let now = broker.now();
    let one = |status: CredentialStatus| {
        let trouble = status.trouble.as_ref().map(|trouble| {
            json!({
                "errcode": trouble.errcode,
                "reason": trouble.reason,
                "rid": trouble.rid,
                "action": trouble.action,
                "since": trouble.since.as_secs(),
                "failures": trouble.failures,
                "retry_at": trouble.retry_at.map(Timestamp::as_secs),
            })
        });
        json!({
            "credential": status.kind.as_str(),
            "state": State::of(&status, now).as_str(),
            "generation": status.generation,
            "expires_at": status.expires_at.map(Timestamp::as_secs),
            "refresh_at": status.refresh_at.map(Timestamp::as_secs),
            "trouble": trouble,
        })
    };
    of_app(broker, entry).into_iter().map(one).collect()
}

/// An instant with how far it is: `2026-01-01 12:00:00 UTC (in 1 h 54 min)`.
pub(crate) fn when(at: Timestamp, now: Timestamp) -> String {
    let shown = date(at);
    if at >= now {
        format!("{shown} (in {})", span::words(at.since(now)))
    } else {
        format!("{shown} ({} ago)", span::words(now.since(at)))
    }
}

/// An instant.
pub(crate) fn date(at: Timestamp) -> String {
    jiff::Timestamp::from_second(at.as_secs()).map_or_else(
        |_| at.as_secs().to_string(),
        |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

fn until(end: Timestamp, now: Timestamp) -> String {
    span::words(end.since(now))
}

fn action(trouble: &Trouble) -> &str {
    trouble.action.as_deref().unwrap_or("look at the app in WeChat's console")
}
