//! Mini programs: logins by `wx.login`, and what only the session key opens.
//!
//! The session key never leaves: a login is answered with a session id of ours, by which the data
//! that the mini program was given is opened and checked here.

use std::{fmt, sync::Arc, time::Duration};

use clock::Timestamp;
use serde_json::{Map, Value};
use wechat::{AuthCode, MiniSession, OpenId, SessionKey, Undecryptable, UnionId};

use crate::{
    AppEntry, Broker,
    app::{App, AppKind},
    claim::Outcome,
    key::ClientKey,
    login::{ExchangeError, Proof, WrongKind},
    random::random_word,
    store::{Kept, Place, SessionRow, StoreError},
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

impl fmt::Debug for MiniLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MiniLogin").field("openid", &self.openid).finish_non_exhaustive()
    }
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

/// A session is kept for so long. A mini program logs in again without its user noticing, so that
/// none has to be kept for long.
const SESSION_LIFE: Duration = Duration::from_secs(3 * 86_400);

impl Broker {
    /// Exchanges the code of `wx.login`, by the same rules as [`Broker::exchange`].
    pub async fn mini_login(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        js_code: &AuthCode,
        proof: Proof<'_>,
    ) -> Result<MiniLogin, ExchangeError> {
        be_mini(entry)?;
        let for_wechat = js_code.clone();
        let exchange = async move |broker: Self, app: Arc<App>| match broker
            .0
            .wechat
            .exchange_js_code(&app.id, &app.secret, &for_wechat)
            .await
        {
            Ok(session) => Ok(broker.session(&app, session).await),
            Err(error) => Ok((Outcome::of(error)?, Kept::Nothing)),
        };
        match self.exchange_once(entry, key, js_code, proof, exchange).await?.succeeded()? {
            Outcome::Session { session, openid, unionid, expires_at } => Ok(MiniLogin {
                session,
                openid: OpenId::new(openid),
                unionid: unionid.map(UnionId::new),
                expires_at: Timestamp::from_millis(expires_at),
            }),
            _ => Err(ExchangeError::CodeUsed),
        }
    }

    /// Opens the `encryptedData` that the mini program got in a session.
    pub async fn mini_decrypt(
        &self,
        entry: &Arc<AppEntry>,
        session: &str,
        iv: &str,
        encrypted_data: &str,
    ) -> Result<Map<String, Value>, MiniError> {
        let (openid, session_key) = self.find_session(entry, session).await?;
        let fields = wechat::decrypt(&entry.app().id, &session_key, iv, encrypted_data)?;
        let named = fields.get("openId").and_then(Value::as_str);
        if named.is_some_and(|named| named != openid.as_str()) {
            return Err(MiniError::OtherUser);
        }
        Ok(fields)
    }

    /// Whether `signature` is that of the `rawData` that the mini program got in a session.
    pub async fn mini_is_signed(
        &self,
        entry: &Arc<AppEntry>,
        session: &str,
        raw_data: &str,
        signature: &str,
    ) -> Result<bool, MiniError> {
        let (_, session_key) = self.find_session(entry, session).await?;
        Ok(wechat::is_signed(&session_key, raw_data, signature))
    }

    /// The session for what WeChat answered.
    async fn session(&self, app: &App, answered: MiniSession) -> (Outcome, Kept) {
        let MiniSession { session_key, openid, unionid } = answered;
        let known = self.known_unionid(app, &openid, unionid.as_ref()).await;
        let session = format!("ms_{}", random_word::<24>());
        let id = self.session_hash(&session);
        let place = Place::SessionKey(app.id.clone(), id);
        let row = SessionRow {
            app: app.id.clone(),
            id,
            openid: openid.clone(),
            session_key: self.0.sealer.seal(&place.binding(), session_key.expose().as_bytes()),
            expires_at: self.now() + SESSION_LIFE,
        };
        let outcome = Outcome::Session {
            session,
            openid: openid.as_str().to_owned(),
            unionid: known.map(|unionid| unionid.as_str().to_owned()),
            expires_at: row.expires_at.as_millis(),
        };
        (outcome, Kept::Session(row, unionid))
    }

    async fn find_session(
        &self,
        entry: &Arc<AppEntry>,
        session: &str,
    ) -> Result<(OpenId, SessionKey), MiniError> {
        be_mini(entry)?;
        let (app, id) = (entry.app().id.clone(), self.session_hash(session));
        let found = self.0.store.find_session(&app, &id).await?.ok_or(MiniError::NoSession)?;
        let key = self.open_sealed(&Place::SessionKey(app, id), &found.session_key)?;
        Ok((found.openid, SessionKey::new(key)))
    }

    fn session_hash(&self, session: &str) -> [u8; 32] {
        self.0.hasher.hash(&format!("session/{session}"))
    }
}

pub(crate) fn be_mini(entry: &Arc<AppEntry>) -> Result<(), WrongKind> {
    match entry.app().kind {
        AppKind::MiniProgram => Ok(()),
        _ => Err(WrongKind::new("only a mini program has logins by `wx.login`")),
    }
}
