//! Codes of clients that hold what they give themselves, as an SDK does.
//!
//! The same claim stands before the exchange as before a login of ours, so a code goes to WeChat at
//! most once. What WeChat answers goes to the client and is not kept: there is nothing to tell again.

use std::sync::{Arc, Mutex, PoisonError};

use wechat::{AuthCode, IssuedGrant, MiniSession};

use crate::{
    AppEntry, Broker, ExchangeError, Proof,
    app::App,
    claim::{Exchanged, Outcome},
    key::ClientKey,
    login::scope_of,
    mini::be_mini,
    store::Kept,
};

/// Where the exchange leaves what the client gets.
struct Hand<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Hand<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Hand<T> {
    fn empty() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// Puts in what WeChat answered, and says what the exchange came to.
    fn put(&self, answered: Result<T, wechat::Error>) -> Exchanged {
        match answered {
            Ok(issued) => {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(issued);
                Ok((Outcome::HandedOut, Kept::Nothing))
            }
            Err(error) => Ok((Outcome::of(error)?, Kept::Nothing)),
        }
    }

    fn take(&self) -> Result<T, ExchangeError> {
        let issued = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        issued.ok_or(ExchangeError::CodeUsed)
    }
}

impl Broker {
    /// Exchanges a code for a client that keeps the user's tokens itself. It goes to WeChat at most
    /// once, also when it is brought to [`Broker::exchange`] as well; nothing is kept but that.
    pub async fn exchange_for_client(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        code: &AuthCode,
    ) -> Result<IssuedGrant, ExchangeError> {
        // A mini program has none.
        scope_of(&entry.app(), None)?;
        let (hand, code_sent) = (Hand::empty(), code.clone());
        let into = hand.clone();
        let exchange = async move |broker: Self, app: Arc<App>| {
            into.put(broker.0.wechat.exchange_code(&app.id, &app.secret, &code_sent).await)
        };
        self.exchange_once(entry, key, code, Proof::None, exchange).await?.succeeded()?;
        hand.take()
    }

    /// Exchanges the code of `wx.login` for a client that keeps the session key itself.
    pub async fn exchange_js_for_client(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        code: &AuthCode,
    ) -> Result<MiniSession, ExchangeError> {
        be_mini(entry)?;
        let (hand, code_sent) = (Hand::empty(), code.clone());
        let into = hand.clone();
        let exchange = async move |broker: Self, app: Arc<App>| {
            into.put(broker.0.wechat.exchange_js_code(&app.id, &app.secret, &code_sent).await)
        };
        self.exchange_once(entry, key, code, Proof::None, exchange).await?.succeeded()?;
        hand.take()
    }
}
