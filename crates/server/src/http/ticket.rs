//! Tickets, and signing pages with one.

use broker::JssdkConfig;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wechat::TicketKind;

use super::{
    App,
    answer::json_answer,
    call::{Answer, Caller},
    input::{json, word},
    problem::Problem,
};

/// The longest address of a page.
const LONGEST_URL: usize = 2048;

/// A ticket as it is told.
#[derive(Serialize)]
struct TicketBody<'a> {
    ticket: &'a str,
    expires_in: u64,
    expires_at: i64,
    generation: u64,
}

/// A page to be signed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Page {
    url: String,
}

/// What `wx.config` takes, by its names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigBody<'a> {
    app_id: &'a str,
    timestamp: i64,
    nonce_str: &'a str,
    signature: &'a str,
}

/// A ticket of the app.
pub(super) async fn read(app: &App, caller: &Caller, kind: &str) -> Answer {
    let kind: TicketKind = word("kind", kind)?;
    let view = app.broker.ticket(&caller.entry, kind).await?;
    Ok(json_answer(&TicketBody {
        ticket: view.ticket.expose(),
        expires_in: view.expires_in.as_secs(),
        expires_at: view.expires_at.as_secs(),
        generation: view.generation,
    }))
}

/// The signature of a page.
pub(super) async fn sign_page(app: &App, caller: &Caller, body: &Bytes) -> Answer {
    let Page { url } = json(body)?;
    check_url(&url)?;
    let JssdkConfig { timestamp, nonce, signature } =
        app.broker.jssdk_config(&caller.entry, &url).await?;
    Ok(json_answer(&ConfigBody {
        app_id: caller.entry.app().id.as_str(),
        timestamp,
        nonce_str: &nonce,
        signature: &signature,
    }))
}

/// Checks that an address can be that of a page; a browser signs what stands in its address bar.
fn check_url(url: &str) -> Result<(), Problem> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if host.is_empty() || host.starts_with(':') || url.len() > LONGEST_URL || url.contains(odd) {
        let detail = format!(
            "`url` is the page's address, `http://…` or `https://…`, without blanks and of at \
             most {LONGEST_URL} bytes."
        );
        return Err(Problem::invalid("url", detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_pages() {
        for good in ["http://a", "https://a.cn/b?c=d#e", "https://a.cn:8443/微信", "http://[::1]/"]
        {
            assert!(check_url(good).is_ok(), "{good}");
        }
        let long = format!("https://a/{}", "b".repeat(LONGEST_URL));
        for bad in [
            "",
            "a.cn/b",
            "ftp://a",
            "https://",
            "https:///b",
            "http://:80/",
            "http://a /",
            "http://a\n",
            &long,
        ] {
            assert!(check_url(bad).is_err(), "{bad:?}");
        }
    }
}
