//! Mini programs: logins, and what only the session key opens.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wechat::UnionId;

use super::{
    App,
    answer::json_answer,
    call::{Answer, Caller, Input},
    input::{is_visible, json},
    oauth::{auth_code, proof},
    problem::Problem,
};

/// The longest id of a session that is looked up.
const LONGEST_SESSION: usize = 128;

/// A code that `wx.login` gave.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Brought {
    js_code: String,
    #[serde(default)]
    binding: Option<String>,
}

/// Who the user is.
#[derive(Serialize)]
struct LoginBody<'a> {
    session: &'a str,
    openid: &'a str,
    unionid: Option<&'a str>,
    expires_at: i64,
}

/// Data that a mini program got, by its names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "an object")]
struct Encrypted {
    session: String,
    encrypted_data: String,
    iv: String,
}

/// What the data says.
#[derive(Serialize)]
struct DataBody {
    data: Map<String, Value>,
}

/// Signed data that a mini program got, by its names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "an object")]
struct Signed {
    session: String,
    raw_data: String,
    signature: String,
}

/// Whether the signature is right.
#[derive(Serialize)]
struct ValidBody {
    valid: bool,
}

/// Exchanges a code of `wx.login`.
pub(super) async fn login(app: &App, caller: &Caller, input: &Input<'_>) -> Answer {
    let Brought { js_code, binding } = json(input.body)?;
    let js_code = auth_code("js_code", js_code)?;
    let proof = proof(binding.as_deref(), input.headers)?;
    let login = app.broker.mini_login(&caller.entry, &caller.key, &js_code, proof).await?;
    Ok(json_answer(&LoginBody {
        session: &login.session,
        openid: login.openid.as_str(),
        unionid: login.unionid.as_ref().map(UnionId::as_str),
        expires_at: login.expires_at.as_secs(),
    }))
}

/// Opens encrypted data.
pub(super) async fn decrypt(app: &App, caller: &Caller, body: &Bytes) -> Answer {
    let Encrypted { session, encrypted_data, iv } = json(body)?;
    check_session(&session)?;
    let data = app.broker.mini_decrypt(&caller.entry, &session, &iv, &encrypted_data).await?;
    Ok(json_answer(&DataBody { data }))
}

/// Checks a signature.
pub(super) async fn check_signature(app: &App, caller: &Caller, body: &Bytes) -> Answer {
    let Signed { session, raw_data, signature } = json(body)?;
    check_session(&session)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if signature.len() != 40 || !signature.bytes().all(hex) {
        let detail = "`signature` has 40 hexadecimal digits, in lower case.";
        return Err(Problem::invalid("signature", detail));
    }
    let valid = app.broker.mini_is_signed(&caller.entry, &session, &raw_data, &signature).await?;
    Ok(json_answer(&ValidBody { valid }))
}

fn check_session(session: &str) -> Result<(), Problem> {
    if is_visible(session, LONGEST_SESSION) {
        return Ok(());
    }
    let detail = format!("`session` has 1 to {LONGEST_SESSION} visible ASCII characters.");
    Err(Problem::invalid("session", detail))
}
