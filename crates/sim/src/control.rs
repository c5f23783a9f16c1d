//! The control port: what the methods of [`Sim`] do, over HTTP and JSON.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    AppSpec, CallbackMode, ControlError, DuplicateCallbacks, Fault, Issuer, Revocation, Scope,
    SetFault, Sim, Switches, UserSpec, rng::short_hash,
};

/// An answer that is not 200.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    field: Option<String>,
    error: String,
}

impl Refusal {
    fn field(field: impl Into<String>, error: impl Into<String>) -> Self {
        let (field, error) = (Some(field.into()), error.into());
        Self { status: StatusCode::BAD_REQUEST, field, error }
    }

    fn plain(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, field: None, error: error.into() }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let status = match error {
            ControlError::UnknownApp(_) | ControlError::UnknownUser(_) => StatusCode::NOT_FOUND,
            ControlError::AppExists(_)
            | ControlError::FixedClock
            | ControlError::WrongKind(_)
            | ControlError::NoSession(_) => StatusCode::CONFLICT,
        };
        Self::plain(status, error.to_string())
    }
}

/// Answers a request to the control port.
pub(crate) async fn answer(
    sim: &Sim,
    method: &Method,
    path: &str,
    query: Vec<(String, String)>,
    body: Bytes,
) -> (StatusCode, Value) {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let answered = match (method.as_str(), segments.as_slice()) {
        ("GET", ["sim", "clock"]) => Ok(clock(sim)),
        ("POST", ["sim", "clock", "advance"]) => advance(sim, &body).await,
        ("GET", ["sim", "calls"]) => calls(sim, &query),
        ("GET", ["sim", "faults"]) => Ok(faults(sim)),
        ("POST", ["sim", "faults"]) => set_fault(sim, &body),
        ("DELETE", ["sim", "faults"]) => {
            sim.clear_faults();
            Ok(faults(sim))
        }
        ("DELETE", ["sim", "faults", id]) => remove_fault(sim, id),
        ("GET", ["sim", "users"]) => Ok(users(sim, &query)),
        ("GET", ["sim", "messages"]) => messages(sim, &query),
        ("POST", ["sim", "users"]) => add_users(sim, &body),
        ("GET", ["sim", "apps"]) => Ok(json!({ "apps": sim.apps() })),
        ("POST", ["sim", "apps"]) => add_app(sim, &body),
        ("POST", ["sim", "apps", appid]) => change_app(sim, appid, &body),
        ("POST", ["sim", "apps", appid, "foreign-refresh"]) => foreign_refresh(sim, appid, &body),
        ("POST", ["sim", "apps", appid, "codes"]) => issue_code(sim, appid, &body),
        ("POST", ["sim", "apps", appid, "js-codes"]) => issue_js_code(sim, appid, &body),
        ("POST", ["sim", "apps", appid, "encrypted-data"]) => encrypt_for(sim, appid, &body),
        ("POST", ["sim", "apps", appid, "revoke-grant"]) => revoke_grant(sim, appid, &body),
        ("POST", ["sim", "apps", appid, "duplicate-callbacks"]) => {
            set_duplicate_callbacks(sim, appid, &body)
        }
        ("POST", ["sim", "reset"]) => {
            sim.reset();
            Ok(json!({}))
        }
        ("GET", ["sim", "switches"]) => Ok(json!(sim.switches())),
        ("POST", ["sim", "switches"]) => set_switches(sim, &body),
        (_, known) if is_known(known) => {
            Err(Refusal::plain(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method"))
        }
        _ => Err(Refusal::plain(StatusCode::NOT_FOUND, "the control port has no such path")),
    };
    match answered {
        Ok(answer) => (StatusCode::OK, answer),
        Err(Refusal { status, field, error }) => {
            let mut answer = json!({ "error": error });
            if let Some(field) = field {
                answer["field"] = field.into();
            }
            (status, answer)
        }
    }
}

fn is_known(segments: &[&str]) -> bool {
    matches!(
        segments,
        [
            "sim",
            "clock" | "calls" | "faults" | "users" | "messages" | "apps" | "reset" | "switches"
        ] | ["sim", "clock", "advance"]
            | ["sim", "faults" | "apps", _]
            | [
                "sim",
                "apps",
                _,
                "foreign-refresh"
                    | "codes"
                    | "js-codes"
                    | "encrypted-data"
                    | "revoke-grant"
                    | "duplicate-callbacks"
            ]
    )
}

fn clock(sim: &Sim) -> Value {
    let now = sim.now();
    json!({ "now": now.as_secs(), "now_ms": now.as_millis(), "seed": sim.seed() })
}

async fn advance(sim: &Sim, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Advance {
        seconds: f64,
    }
    /// Beyond it the steps would take too long.
    const MOST_DAYS: f64 = 366.0;
    let Advance { seconds } = parse(read(body)?)?;
    if !(0.0..=MOST_DAYS * 86_400.0).contains(&seconds) {
        return Err(Refusal::field("seconds", "a number from 0 to 366 days is expected"));
    }
    sim.advance(Duration::from_secs_f64(seconds)).await?;
    Ok(clock(sim))
}

fn calls(sim: &Sim, query: &[(String, String)]) -> Result<Value, Refusal> {
    let number = |name: &str, default: u64| match query.iter().find(|(key, _)| key == name) {
        None => Ok(default),
        Some((_, text)) => {
            text.parse::<u64>().map_err(|_| Refusal::field(name, "a whole number is expected"))
        }
    };
    let limit = usize::try_from(number("limit", u64::MAX)?).unwrap_or(usize::MAX);
    Ok(json!(sim.calls_after(number("after", 0)?, limit)))
}

fn faults(sim: &Sim) -> Value {
    let list: Vec<Value> = sim.faults().iter().map(shown_fault).collect();
    json!({ "seed": sim.seed(), "faults": list })
}

fn shown_fault(set: &SetFault) -> Value {
    let mut fields = Map::from_iter([("id".to_owned(), Value::from(set.id))]);
    fields.extend(set.fault.to_json());
    fields.insert("hits".to_owned(), set.hits.into());
    Value::Object(fields)
}

fn set_fault(sim: &Sim, body: &Bytes) -> Result<Value, Refusal> {
    let set = |value: Value| match value {
        Value::Object(fields) => {
            Fault::from_json(fields).map_err(|bad| Refusal::field(bad.field, bad.why))
        }
        _ => Err(Refusal::plain(StatusCode::BAD_REQUEST, "a fault is a JSON object")),
    };
    let faults: Vec<Fault> = match read(body)? {
        Value::Array(list) => list.into_iter().map(set).collect::<Result<_, _>>()?,
        one => vec![set(one)?],
    };
    let ids: Vec<u64> = faults.into_iter().map(|fault| sim.set_fault(fault)).collect();
    Ok(json!({ "ids": ids, "seed": sim.seed() }))
}

fn remove_fault(sim: &Sim, id: &str) -> Result<Value, Refusal> {
    if id.parse().is_ok_and(|id| sim.remove_fault(id)) {
        return Ok(json!({}));
    }
    Err(Refusal::plain(StatusCode::NOT_FOUND, "no fault has this id"))
}

fn users(sim: &Sim, query: &[(String, String)]) -> Value {
    let appid = query.iter().find(|(key, _)| key == "appid").map(|(_, appid)| appid.as_str());
    json!({ "users": sim.users(appid) })
}

fn messages(sim: &Sim, query: &[(String, String)]) -> Result<Value, Refusal> {
    let appid = query.iter().find(|(key, _)| key == "appid").map(|(_, appid)| appid.as_str());
    let appid = appid.ok_or_else(|| Refusal::field("appid", "which app is it about?"))?;
    Ok(json!({ "messages": sim.messages(appid)? }))
}

fn add_users(sim: &Sim, body: &Bytes) -> Result<Value, Refusal> {
    let users: Vec<UserSpec> = match read(body)? {
        Value::Array(list) => list.into_iter().map(parse).collect::<Result<_, _>>()?,
        one => vec![parse(one)?],
    };
    let added = users.len();
    for user in users {
        sim.add_user(user)?;
    }
    Ok(json!({ "added": added }))
}

/// Adds an app. A secret is made up when none is given; this answer is the only one that shows it.
fn add_app(sim: &Sim, body: &Bytes) -> Result<Value, Refusal> {
    let mut fields = object(read(body)?)?;
    if !fields.contains_key("secret") {
        fields.insert("secret".to_owned(), sim.state().write_secret().into());
    }
    let spec: AppSpec = parse(Value::Object(fields))?;
    if spec.appid.is_empty() || spec.appid.len() > 64 {
        return Err(Refusal::field("appid", "1 to 64 characters are expected"));
    }
    if sim.apps().iter().any(|app| app.appid == spec.appid) {
        return Err(ControlError::AppExists(spec.appid).into());
    }
    let mut answer = json!(spec);
    answer["secret"] = spec.secret.as_str().into();
    sim.add_app(spec);
    Ok(answer)
}

fn change_app(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    let changes = object(read(body)?)?;
    if changes.get("appid").is_some_and(|new| new != appid) {
        return Err(Refusal::field("appid", "an appid does not change"));
    }
    let find = || sim.apps().into_iter().find(|app| app.appid == appid);
    let Some(old) = find() else {
        return Err(ControlError::UnknownApp(appid.to_owned()).into());
    };
    let mut fields = object(json!(old))?;
    fields.insert("secret".to_owned(), old.secret.into());
    fields.extend(changes);
    let new: AppSpec = parse(Value::Object(fields))?;
    sim.update_app(appid, |spec| *spec = new)?;
    Ok(json!(find()))
}

fn foreign_refresh(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Mint {
        issuer: Issuer,
        #[serde(default)]
        kill: bool,
    }
    let Mint { issuer, kill } = parse(read(body)?)?;
    let token = sim.foreign_refresh(appid, issuer, kill)?;
    Ok(json!({ "token": short_hash(&token) }))
}

fn issue_code(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Consent {
        openid: String,
        scope: Scope,
        #[serde(default)]
        snapshot: bool,
    }
    let Consent { openid, scope, snapshot } = parse(read(body)?)?;
    Ok(json!({ "code": sim.issue_code(appid, &openid, scope, snapshot)? }))
}

fn issue_js_code(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Login {
        openid: String,
    }
    let Login { openid } = parse(read(body)?)?;
    Ok(json!({ "js_code": sim.issue_js_code(appid, &openid)? }))
}

fn encrypt_for(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Read {
        openid: String,
        data: Map<String, Value>,
    }
    let Read { openid, data } = parse(read(body)?)?;
    Ok(json!(sim.encrypt_for(appid, &openid, data)?))
}

fn revoke_grant(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Revoke {
        openid: String,
        #[serde(default)]
        reason: Revocation,
    }
    let Revoke { openid, reason } = parse(read(body)?)?;
    sim.revoke_grant(appid, &openid, reason)?;
    Ok(json!({}))
}

fn set_duplicate_callbacks(sim: &Sim, appid: &str, body: &Bytes) -> Result<Value, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Off,
        SameCode,
        NewCode,
        SlowFirst,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Twice {
        mode: Mode,
        #[serde(default)]
        count: Option<u64>,
        #[serde(default)]
        delay_ms: Option<u64>,
    }
    let Twice { mode, count, delay_ms } = parse(read(body)?)?;
    let mode = match mode {
        Mode::Off => None,
        Mode::SameCode => Some(CallbackMode::SameCode),
        Mode::NewCode => Some(CallbackMode::NewCode),
        Mode::SlowFirst => Some(CallbackMode::SlowFirst),
    };
    for (field, is_there) in [("count", count.is_some()), ("delay_ms", delay_ms.is_some())] {
        if mode.is_none() && is_there {
            return Err(Refusal::field(field, "`off` stands alone"));
        }
    }
    let delay_ms = delay_ms.unwrap_or(DuplicateCallbacks::DELAY_MS);
    let twice = mode.map(|mode| DuplicateCallbacks { mode, count, delay_ms });
    sim.set_duplicate_callbacks(appid, twice)?;
    Ok(json!({}))
}

/// Changes the switches that are named, and leaves the others.
fn set_switches(sim: &Sim, body: &Bytes) -> Result<Value, Refusal> {
    let changes = object(read(body)?)?;
    let mut fields = object(json!(sim.switches()))?;
    fields.extend(changes);
    let switches: Switches = parse(Value::Object(fields))?;
    sim.set_switches(switches);
    Ok(json!(sim.switches()))
}

fn read(body: &Bytes) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::plain(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
    })
}

fn object(value: Value) -> Result<Map<String, Value>, Refusal> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(Refusal::plain(StatusCode::BAD_REQUEST, "the body is not a JSON object")),
    }
}

/// Reads a value, naming the field that is wrong.
fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    if !value.is_object() {
        return Err(Refusal::plain(StatusCode::BAD_REQUEST, "a JSON object is expected"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let why = error.into_inner().to_string();
        let field = named_field(&why).map_or(path, str::to_owned);
        Refusal::field(field, why)
    })
}

/// The field in serde's words on a missing or unknown one, whose path is that of its parent.
pub(crate) fn named_field(why: &str) -> Option<&str> {
    let rest = why.strip_prefix("missing field `").or_else(|| why.strip_prefix("unknown field `"));
    rest.and_then(|rest| rest.split('`').next())
}
