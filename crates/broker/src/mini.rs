//! Mini programs: logins by `wx.login`, and what only the session key opens.
//!
//! The session key never leaves: a login is answered with a session id of ours, by which the data
//! that the mini program was given is opened and checked here.

use std::sync::Arc;

use clock::Timestamp;
use serde_json::{Map, Value};
use wechat::{AuthCode, OpenId, Undecryptable, UnionId};

use crate::{
    AppEntry, Broker,
    key::ClientKey,
    login::{ExchangeError, Proof, WrongKind},
    store::StoreError,
};

/// A login to a mini program.
#[derive(Clone, PartialEq, Eq)]
pub struct MiniLogin {
    /// The id of the session, `ms_…`: stands for the session key, which is not told.
    pub session: String,
    /// The user's id in this app.
    pub openid: OpenId,
    /// The user's id in the owner's Open Platform account, from this login or remembered.
    pub unionid: Option<UnionId>,
    /// Until when the session is kept.
    pub expires_at: Timestamp,
}

/// Why data of a mini program was not opened or checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MiniError {
    /// The app is no mini program.
    #[error(transparent)]
    WrongKind(#[from] WrongKind),
    /// There is no such session in this app, or no longer.
    #[error("there is no such session, or no longer: let the mini program log in again")]
    NoSession,
    /// The data does not open.
    #[error(transparent)]
    Undecryptable(#[from] Undecryptable),
    /// The data opens and names another user than the session's.
    #[error("the data is about another user than the session's")]
    OtherUser,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Broker {
    /// Exchanges the code of `wx.login`, by the same rules as [`Broker::exchange`].
    pub async fn mini_login(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        js_code: &AuthCode,
        proof: Proof<'_>,
    ) -> Result<MiniLogin, ExchangeError> {
        todo!()
    }

    /// Opens the `encryptedData` that the mini program got in a session.
    pub async fn mini_decrypt(
        &self,
        entry: &Arc<AppEntry>,
        session: &str,
        iv: &str,
        encrypted_data: &str,
    ) -> Result<Map<String, Value>, MiniError> {
        todo!()
    }

    /// Whether `signature` is that of the `rawData` that the mini program got in a session.
    pub async fn mini_is_signed(
        &self,
        entry: &Arc<AppEntry>,
        session: &str,
        raw_data: &str,
        signature: &str,
    ) -> Result<bool, MiniError> {
        todo!()
    }
}
