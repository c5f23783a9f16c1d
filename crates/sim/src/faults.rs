//! Faults: what goes wrong, where, and how often, decided by the seed.

use std::{collections::VecDeque, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Issuer,
    answer::Suffix,
    control::named_field,
    rng::{Rng, digest, mix},
};

/// Something that goes wrong with some calls.
///
/// As JSON: `{"kind": …, "path": …, "appid": …, "count": …, "probability": …}` and the fields of
/// its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// The path it happens on; with `*` at its end, all paths that begin so. Any path without.
    /// Calls only, no pages: below `/connect/` no fault ever falls.
    pub path: Option<String>,
    /// The app it happens to. Any without.
    pub appid: Option<String>,
    /// How many times it happens. Without end when left out.
    pub count: Option<u64>,
    /// How likely it is, from 0 to 1. Certain when left out.
    pub probability: Option<f64>,
}

impl Fault {
    /// A fault that happens to every call.
    pub const fn new(kind: FaultKind) -> Self {
        Self { kind, path: None, appid: None, count: None, probability: None }
    }

    /// The fault on one path, or with `*` at the end on all paths that begin so. Calls only, no
    /// pages.
    #[must_use]
    pub fn on(self, path: impl Into<String>) -> Self {
        Self { path: Some(path.into()), ..self }
    }

    /// The fault for one app.
    #[must_use]
    pub fn of(self, appid: impl Into<String>) -> Self {
        Self { appid: Some(appid.into()), ..self }
    }

    /// The fault for the next `count` calls that it fits.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// The fault with a probability from 0 to 1.
    #[must_use]
    pub fn likely(self, probability: f64) -> Self {
        Self { probability: Some(probability), ..self }
    }

    fn fits(&self, path: &str, appid: &str) -> bool {
        let path_fits = self.path.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(begin) => path.starts_with(begin),
            None => path == wanted,
        });
        path_fits && self.appid.as_deref().is_none_or(|wanted| wanted == appid)
    }
}

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// The call waits before it is processed.
    LatencyBefore {
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// The call is processed at once, its answer waits.
    LatencyAfter {
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// The connection is reset and nothing was processed.
    ResetBefore {},
    /// The connection is reset after the call was processed.
    ResetAfter {},
    /// The call is refused with a code instead of being processed.
    Errcode {
        /// The code, such as -1, 45011, 45009, 40164.
        code: i64,
        /// The address that the text of 40164 names, instead of the caller's.
        #[serde(default)]
        ip: Option<IpAddr>,
        /// The text, instead of WeChat's.
        #[serde(default)]
        message: Option<String>,
    },
    /// Somebody outside mints a token just before the call.
    ForeignMint {
        /// Whose token is superseded.
        #[serde(default = "classic")]
        issuer: Issuer,
        /// The overlap ends at once.
        #[serde(default)]
        kill: bool,
    },
    /// The live tokens of the app end before the call is processed.
    EarlyInvalidation {
        /// Only those of one issuer.
        #[serde(default)]
        issuer: Option<Issuer>,
        /// The stable issuer goes on to hand out the dead token until it is forced or its nominal
        /// life is over.
        #[serde(default)]
        sticky: bool,
    },
    /// The user whose web token or refresh token the call carries takes the authorisation back
    /// before it is processed: see [`Sim::revoke_grant`](crate::Sim::revoke_grant).
    GrantRevoked {},
    /// The user whose web token or refresh token the call carries changes the password before it is
    /// processed. What follows is the same as with [`Self::GrantRevoked`], for all that is known.
    PasswordChanged {},
    /// The web tokens of the user whose web token or refresh token the call carries end before it
    /// is processed; refresh tokens live on.
    WebTokenEnds {},
    /// The AppSecret is replaced by an unknown one before the call is processed.
    SecretReset {},
    /// 502 with an HTML page from a gateway.
    BadGateway {
        /// The call was processed nevertheless.
        #[serde(default)]
        processed: bool,
    },
    /// The connection closes in the middle of the body.
    TruncatedBody {},
    /// The body is empty.
    EmptyBody {},
    /// `expires_in` is not as it should be.
    ExpiresIn {
        /// In which way.
        r#as: BadNumber,
    },
    /// Control bytes and broken UTF-8 stand in nickname and remark.
    DirtyStrings {
        /// In which way.
        #[serde(default)]
        r#as: Dirt,
    },
    /// The content type does not fit the body.
    ContentType {
        /// The content type.
        #[serde(default = "html")]
        value: String,
    },
    /// Error texts end in another way.
    OldSuffix {
        /// In which way.
        suffix: Suffix,
    },
    /// Tokens that a mint supersedes live on longer than they should.
    OldTokenSurvives {
        /// For how long at most, in seconds.
        seconds: u64,
    },
    /// `Date` and rid are those of a wrong clock.
    ClockSkew {
        /// How much it is ahead, in seconds; negative when behind.
        seconds: i64,
    },
}

/// How a number is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadNumber {
    /// The right number, as a string.
    String,
    /// Left out.
    Missing,
    /// 0.
    Zero,
    /// -7200.
    Negative,
    /// Ten times the right number.
    TooLarge,
    /// 2^63 - 1.
    Huge,
}

/// How a string is dirty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dirt {
    /// Bytes below U+0020, unescaped.
    Control,
    /// Bytes that are no UTF-8.
    BrokenUtf8,
    /// Both.
    #[default]
    Both,
}

const fn classic() -> Issuer {
    Issuer::Classic
}

fn html() -> String {
    "text/html; charset=ISO-8859-1".to_owned()
}

impl FaultKind {
    /// The name in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::LatencyBefore { .. } => "latency_before",
            Self::LatencyAfter { .. } => "latency_after",
            Self::ResetBefore {} => "reset_before",
            Self::ResetAfter {} => "reset_after",
            Self::Errcode { .. } => "errcode",
            Self::ForeignMint { .. } => "foreign_mint",
            Self::EarlyInvalidation { .. } => "early_invalidation",
            Self::GrantRevoked {} => "grant_revoked",
            Self::PasswordChanged {} => "password_changed",
            Self::WebTokenEnds {} => "web_token_ends",
            Self::SecretReset {} => "secret_reset",
            Self::BadGateway { .. } => "bad_gateway",
            Self::TruncatedBody {} => "truncated_body",
            Self::EmptyBody {} => "empty_body",
            Self::ExpiresIn { .. } => "expires_in",
            Self::DirtyStrings { .. } => "dirty_strings",
            Self::ContentType { .. } => "content_type",
            Self::OldSuffix { .. } => "old_suffix",
            Self::OldTokenSurvives { .. } => "old_token_survives",
            Self::ClockSkew { .. } => "clock_skew",
        }
    }

    /// When in the course of a call it comes. Those of one stage do not exclude each other, except
    /// that the first one which ends a call is the last one that is asked.
    const fn stage(&self) -> u8 {
        match self {
            Self::LatencyBefore { .. } => 0,
            Self::ResetBefore {} => 1,
            Self::ForeignMint { .. }
            | Self::EarlyInvalidation { .. }
            | Self::GrantRevoked {}
            | Self::PasswordChanged {}
            | Self::WebTokenEnds {}
            | Self::SecretReset {} => 2,
            Self::BadGateway { .. } => 3,
            Self::Errcode { .. } => 4,
            _ => 5,
        }
    }

    /// Whether nothing is processed any more.
    const fn ends_the_call(&self) -> bool {
        matches!(self, Self::ResetBefore {} | Self::BadGateway { processed: false })
    }
}

/// A fault that was set.
#[derive(Clone, Debug, PartialEq)]
pub struct SetFault {
    /// Its number, for taking it away.
    pub id: u64,
    /// What was set; `count` is what is left of it.
    pub fault: Fault,
    /// How often it happened.
    pub hits: u64,
}

/// The faults that are set.
#[derive(Debug)]
pub(crate) struct Faults {
    seed: u64,
    last_id: u64,
    /// Those that may happen, in the order in which they are asked.
    set: Vec<SetFault>,
    /// Those that happened as often as they should. They are still shown.
    used_up: VecDeque<SetFault>,
}

impl Faults {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, last_id: 0, set: Vec::new(), used_up: VecDeque::new() }
    }

    pub(crate) fn set(&mut self, fault: Fault) -> u64 {
        self.last_id += 1;
        self.set.push(SetFault { id: self.last_id, fault, hits: 0 });
        // Sorting keeps the order of setting within a stage.
        self.set.sort_by_key(|one| one.fault.kind.stage());
        self.put_used_up_aside();
        self.last_id
    }

    /// All that were set; of those that are used up the last thousand.
    pub(crate) fn list(&self) -> Vec<SetFault> {
        let mut list: Vec<SetFault> = self.set.iter().chain(&self.used_up).cloned().collect();
        list.sort_unstable_by_key(|one| one.id);
        list
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.set.len() + self.used_up.len();
        self.set.retain(|one| one.id != id);
        self.used_up.retain(|one| one.id != id);
        self.set.len() + self.used_up.len() < before
    }

    pub(crate) fn clear(&mut self) {
        self.set.clear();
        self.used_up.clear();
    }

    /// The next fault numbers begin at 1 again, so that the same faults fall the same way.
    pub(crate) fn restart(&mut self) {
        self.clear();
        self.last_id = 0;
    }

    /// Asks each fault that fits a call, the `nth` of its app at its path.
    ///
    /// Chance depends on the seed, the fault, the path, the app and `nth` only, so that calls of
    /// other apps in between change nothing.
    pub(crate) fn ask(&mut self, path: &str, appid: &str, nth: u64) -> Vec<FaultKind> {
        let mut hit = Vec::new();
        let mut used_up = false;
        for one in &mut self.set {
            let fault = &mut one.fault;
            if !fault.fits(path, appid) {
                continue;
            }
            if let Some(probability) = fault.probability {
                let call = mix(digest(path) ^ mix(digest(appid))) ^ mix(nth);
                let chance = Rng::new(self.seed ^ mix(one.id), call).bits() >> 11;
                // 53 bits are what an f64 holds.
                if chance as f64 / (1u64 << 53) as f64 >= probability {
                    continue;
                }
            }
            fault.count = fault.count.map(|left| left - 1);
            used_up |= fault.count == Some(0);
            one.hits += 1;
            hit.push(fault.kind.clone());
            if fault.kind.ends_the_call() {
                break;
            }
        }
        if used_up {
            self.put_used_up_aside();
        }
        hit
    }

    /// No call asks a fault any more that has happened as often as it should.
    fn put_used_up_aside(&mut self) {
        /// Beyond as many they are forgotten.
        const SHOWN: usize = 1_000;
        self.used_up.extend(self.set.extract_if(.., |one| one.fault.count == Some(0)));
        let surplus = self.used_up.len().saturating_sub(SHOWN);
        self.used_up.drain(..surplus);
    }
}

/// A fault as JSON that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub(crate) struct BadFault {
    pub(crate) field: String,
    pub(crate) why: String,
}

impl Fault {
    /// Reads the JSON form, naming the field that is wrong.
    pub(crate) fn from_json(mut fields: Map<String, Value>) -> Result<Self, BadFault> {
        let bad = |field: &str, why: &str| BadFault { field: field.into(), why: why.into() };
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let kind = match take("kind") {
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(bad("kind", "a string is expected")),
            None => return Err(bad("kind", "missing")),
        };
        let path = match take("path") {
            None => None,
            Some(Value::String(path)) if path.starts_with("/connect") => {
                return Err(bad("path", "faults fall on calls only, and this is a page"));
            }
            Some(Value::String(path)) if path.starts_with('/') || path == "*" => Some(path),
            Some(_) => return Err(bad("path", "a path that begins with `/` is expected")),
        };
        let appid = match take("appid") {
            None => None,
            Some(Value::String(appid)) => Some(appid),
            Some(_) => return Err(bad("appid", "a string is expected")),
        };
        let count = match take("count") {
            None => None,
            Some(value) => match value.as_u64() {
                None => return Err(bad("count", "a whole number is expected")),
                some => some,
            },
        };
        let probability = match take("probability") {
            None => None,
            Some(value) => match value.as_f64().filter(|one| (0.0..=1.0).contains(one)) {
                None => return Err(bad("probability", "a number from 0 to 1 is expected")),
                some => some,
            },
        };
        let tagged = Value::Object(Map::from_iter([(kind.clone(), Value::Object(fields))]));
        let kind = serde_path_to_error::deserialize(tagged).map_err(|error| {
            let path = error.path().to_string();
            let prefix = format!("{kind}.");
            let why = error.into_inner().to_string();
            let field = match (named_field(&why), path.strip_prefix(&prefix)) {
                (Some(field), _) | (None, Some(field)) => field.to_owned(),
                (None, None) => "kind".to_owned(),
            };
            BadFault { field, why }
        })?;
        Ok(Self { kind, path, appid, count, probability })
    }

    /// The JSON form.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("kind".to_owned(), self.kind.name().into());
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value);
            }
        };
        put("path", self.path.clone().map(Value::from));
        put("appid", self.appid.clone().map(Value::from));
        put("count", self.count.map(Value::from));
        put("probability", self.probability.map(Value::from));
        // The derived form is `{kind: {parameters}}`.
        if let Ok(Value::Object(tagged)) = serde_json::to_value(&self.kind) {
            for parameters in tagged.into_iter().map(|(_, parameters)| parameters) {
                if let Value::Object(parameters) = parameters {
                    fields.extend(parameters);
                }
            }
        }
        fields
    }
}
