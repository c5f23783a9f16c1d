//! Reading and reporting the global token.

use std::{fmt, time::Duration};

use axum::http::Response;
use broker::{MIN_TTL_CAP, TokenView, key::Permission};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};
use wechat::GlobalToken;

use super::{
    App,
    answer::{json_answer, nothing},
    call::{Answer, Caller},
    input::{Query, json},
    problem::Problem,
    service::Payload,
};

/// The longest that a long poll waits.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long a long poll waits that does not say.
const USUAL_WAIT: Duration = Duration::from_secs(30);

/// WeChat asks for room for 512 characters.
const LONGEST_TOKEN: usize = 1024;

/// A token as it is told.
#[derive(Serialize)]
struct TokenBody<'a> {
    access_token: &'a str,
    expires_in: u64,
    expires_at: i64,
    generation: u64,
}

/// A report that a token failed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Report {
    access_token: String,
    #[serde(deserialize_with = "errcode")]
    errcode: i64,
}

/// The token now; or, when the caller names the generation that it has, the next one.
pub(super) async fn read(app: &App, caller: &Caller, query: &Query<'_>) -> Answer {
    let Caller { key, entry } = caller;
    let min_ttl = min_ttl(query)?;
    let after = query.number("after", u64::MAX)?;
    let wait = query.number("wait", LONGEST_WAIT.as_secs())?.map(Duration::from_secs);
    let Some(after) = after else {
        if wait.is_some() {
            let detail = "`wait` goes with `after`, the generation that you have.";
            return Err(Problem::invalid("wait", detail));
        }
        let view = app.broker.token(entry, Some(key), min_ttl.unwrap_or_default()).await?;
        return Ok(answer(&view));
    };
    if min_ttl.is_some() {
        let detail = "`min_ttl` does not go with `after`.";
        return Err(Problem::invalid("min_ttl", detail));
    }
    let next = app.broker.token_after(entry, Some(key), after, wait.unwrap_or(USUAL_WAIT));
    let next = tokio::select! {
        biased;
        next = next => next?,
        () = app.draining.cancelled() => None,
    };
    Ok(next.map_or_else(nothing, |view| answer(&view)))
}

/// Hears that a token failed, and answers the one to use now, if the caller may read it.
pub(super) async fn report(app: &App, caller: &Caller, body: &Bytes) -> Answer {
    let Caller { key, entry } = caller;
    let Report { access_token, errcode } = json(body)?;
    let plain = access_token.bytes().all(|b| b.is_ascii_graphic());
    if access_token.is_empty() || access_token.len() > LONGEST_TOKEN || !plain {
        let detail = format!("`access_token` has 1 to {LONGEST_TOKEN} printable ASCII characters.");
        return Err(Problem::invalid("access_token", detail));
    }
    let token = GlobalToken::new(access_token);
    if key.may(Permission::Token) {
        return Ok(answer(&app.broker.report(entry, Some(key), &token, errcode).await?));
    }
    // How the app is doing is not this caller's business.
    app.broker.take_report(entry, Some(key), &token, errcode).await?;
    Ok(nothing())
}

/// A token as an answer.
pub(super) fn answer(view: &TokenView) -> Response<Payload> {
    json_answer(&TokenBody {
        access_token: view.token.expose(),
        expires_in: view.expires_in.as_secs(),
        expires_at: view.expires_at.as_secs(),
        generation: view.generation,
    })
}

/// The `min_ttl` of a query that holds nothing else, and that plainly.
pub(super) fn plain_min_ttl(query: &str) -> Option<Duration> {
    let digits = query.strip_prefix("min_ttl=")?;
    let plain = (1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let seconds = plain.then(|| digits.parse().ok()).flatten()?;
    Some(Duration::from_secs(seconds)).filter(|ttl| *ttl <= MIN_TTL_CAP)
}

fn min_ttl(query: &Query<'_>) -> Result<Option<Duration>, Problem> {
    Ok(query.number("min_ttl", MIN_TTL_CAP.as_secs())?.map(Duration::from_secs))
}

/// Reads an errcode as a number or as a text of digits: WeChat's answers have both.
fn errcode<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    struct Errcode;

    impl de::Visitor<'_> for Errcode {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an integer, as a number or as a string")
        }

        fn visit_i64<E: de::Error>(self, code: i64) -> Result<i64, E> {
            Ok(code)
        }

        fn visit_u64<E: de::Error>(self, code: u64) -> Result<i64, E> {
            i64::try_from(code).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(code), &self))
        }

        fn visit_str<E: de::Error>(self, code: &str) -> Result<i64, E> {
            code.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(code), &self))
        }
    }

    from.deserialize_any(Errcode)
}
