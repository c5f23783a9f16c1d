//! Logins of web pages: where to send a user, and who it is that comes back.

use std::str::FromStr;

use axum::http::HeaderMap;
use broker::{Authorize, Identity, Proof};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wechat::{AuthCode, RedirectUri, UnionId};

use super::{
    App,
    answer::json_answer,
    call::{Answer, Caller, Input},
    input::{idempotency_key, is_visible, json, word},
    problem::Problem,
};

/// The longest code that is passed on; WeChat's have 32 characters.
const LONGEST_CODE: usize = 512;

/// The longest binding.
const LONGEST_BINDING: usize = 512;

/// A wish to send a user to WeChat.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Wish {
    redirect_uri: String,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    force_popup: bool,
    #[serde(default)]
    force_snapshot: bool,
    #[serde(default)]
    lang: Option<String>,
}

/// Where to send the user.
#[derive(Serialize)]
struct PageBody<'a> {
    url: &'a str,
    state: &'a str,
}

/// A code that a browser brought.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Brought {
    code: String,
    #[serde(default)]
    binding: Option<String>,
    #[serde(default)]
    redirect_uri: Option<String>,
}

/// Who the user is.
#[derive(Serialize)]
struct IdentityBody<'a> {
    openid: &'a str,
    unionid: Option<&'a str>,
    scope: &'a str,
    is_snapshotuser: bool,
    expires_at: i64,
}

/// The language of the page with the QR code, as WeChat names it there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageLang {
    Chinese,
    English,
}

impl FromStr for PageLang {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cn" => Ok(Self::Chinese),
            "en" => Ok(Self::English),
            _ => Err("the page is shown in `cn` or `en`"),
        }
    }
}

/// The page to send a user's browser to.
pub(super) fn authorize_url(app: &App, caller: &Caller, body: &Bytes) -> Answer {
    let wish: Wish = json(body)?;
    let lang = wish.lang.map(|lang| word("lang", &lang)).transpose()?;
    let wanted = Authorize {
        redirect_uri: word("redirect_uri", &wish.redirect_uri)?,
        scope: wish.scope.map(|scope| word("scope", &scope)).transpose()?,
        state: wish.state.map(|state| word("state", &state)).transpose()?,
        force_popup: wish.force_popup,
        force_snapshot: wish.force_snapshot,
        in_english: lang == Some(PageLang::English),
    };
    let page = app.broker.authorize_url(&caller.entry, &caller.key, &wanted)?;
    Ok(json_answer(&PageBody { url: &page.url, state: page.state.as_str() }))
}

/// Who the user is whose browser brought a code.
pub(super) async fn exchange(app: &App, caller: &Caller, input: &Input<'_>) -> Answer {
    let Brought { code, binding, redirect_uri } = json(input.body)?;
    let code = auth_code("code", code)?;
    let proof = proof(binding.as_deref(), input.headers)?;
    let redirect_uri =
        redirect_uri.map(|uri| word::<RedirectUri>("redirect_uri", &uri)).transpose()?;
    let Caller { key, entry } = caller;
    let identity = app.broker.exchange(entry, key, &code, proof, redirect_uri.as_ref()).await?;
    Ok(json_answer(&IdentityBody::from(&identity)))
}

/// A code of WeChat's.
pub(super) fn auth_code(field: &'static str, text: String) -> Result<AuthCode, Problem> {
    if is_visible(&text, LONGEST_CODE) {
        return Ok(AuthCode::new(text));
    }
    let detail = format!("`{field}` has 1 to {LONGEST_CODE} visible ASCII characters.");
    Err(Problem::invalid(field, detail))
}

/// What shows that a repeat comes from who brought the code first. With a binding, the header is
/// not looked at.
pub(super) fn proof<'a>(
    binding: Option<&'a str>,
    headers: &'a HeaderMap,
) -> Result<Proof<'a>, Problem> {
    let Some(binding) = binding else {
        return Ok(idempotency_key(headers)?.map_or(Proof::None, Proof::IdempotencyKey));
    };
    if (1..=LONGEST_BINDING).contains(&binding.chars().count()) {
        return Ok(Proof::Binding(binding));
    }
    let detail = format!("`binding` has 1 to {LONGEST_BINDING} characters.");
    Err(Problem::invalid("binding", detail))
}

impl<'a> From<&'a Identity> for IdentityBody<'a> {
    fn from(identity: &'a Identity) -> Self {
        Self {
            openid: identity.openid.as_str(),
            unionid: identity.unionid.as_ref().map(UnionId::as_str),
            scope: identity.scope.as_str(),
            is_snapshotuser: identity.is_snapshot_user,
            expires_at: identity.expires_at.as_secs(),
        }
    }
}
