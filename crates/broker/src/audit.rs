//! The audit log: who changed what, and when.
//!
//! A change and its entry are written in one transaction. Token reads are too many for that; they
//! are counted per client key and written in aggregate.

use clock::Timestamp;

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A person at the command line, by the name of the operating system's user.
    Operator(String),
    /// A service, by the id of its client key.
    Key(String),
    /// xinfu itself.
    System,
}

impl Actor {
    /// The actor as one word: `operator:NAME`, `key:ID` or `system`.
    pub fn as_text(&self) -> String {
        match self {
            Self::Operator(name) => format!("operator:{name}"),
            Self::Key(id) => format!("key:{id}"),
            Self::System => "system".to_owned(),
        }
    }

    /// Reads what [`Actor::as_text`] wrote; anything else is the system.
    pub fn from_text(text: &str) -> Self {
        match text.split_once(':') {
            Some(("operator", name)) => Self::Operator(name.to_owned()),
            Some(("key", id)) => Self::Key(id.to_owned()),
            _ => Self::System,
        }
    }
}

/// One entry of the audit log. Holds no secret: what was changed, never the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What, as `noun.verb`: `app.add`, `key.revoke`, `token.refresh`.
    pub action: String,
    /// What it was done to: an appid, a key id.
    pub object: String,
    /// More about it, for people.
    pub detail: String,
}
