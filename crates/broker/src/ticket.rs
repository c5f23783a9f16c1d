//! Tickets, kept like tokens once somebody has asked for one, and the signature that a page needs.

use std::{sync::Arc, time::Duration};

use clock::Timestamp;
use wechat::{Ticket, TicketKind, jssdk_signature};

use crate::{AppEntry, Broker, error::TokenError, random::random_word};

/// A ticket as handed out.
#[derive(Clone, Debug)]
pub struct TicketView {
    /// The ticket.
    pub ticket: Ticket,
    /// Which generation it is.
    pub generation: u64,
    /// When it ends, by the store's time.
    pub expires_at: Timestamp,
    /// How long it lives from the moment of reading.
    pub expires_in: Duration,
}

/// What a page passes to `wx.config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JssdkConfig {
    /// Seconds since the epoch.
    pub timestamp: i64,
    /// A random word.
    pub nonce: String,
    /// SHA-1 over ticket, nonce, timestamp and the page's URL without its fragment.
    pub signature: String,
}

impl Broker {
    /// A ticket of the app, from memory if it is there.
    pub async fn ticket(
        &self,
        entry: &Arc<AppEntry>,
        kind: TicketKind,
    ) -> Result<TicketView, TokenError> {
        if !entry.has_credentials() {
            return Err(TokenError::NoSuchCredential);
        }
        let slot = entry.slot(kind.into());
        slot.mark_used(self.now());
        let held = match slot.usable(self.now(), Duration::ZERO) {
            Some(held) => held,
            None => self.wait_usable(entry, kind.into(), Duration::ZERO).await?,
        };
        Ok(TicketView {
            ticket: Ticket::new(Arc::clone(held.value.expose())),
            generation: held.generation,
            expires_at: held.expires_at,
            expires_in: held.expires_at.since(self.now()),
        })
    }

    /// Signs a page's URL for the JS-SDK.
    pub async fn jssdk_config(
        &self,
        entry: &Arc<AppEntry>,
        url: &str,
    ) -> Result<JssdkConfig, TokenError> {
        let view = self.ticket(entry, TicketKind::Jsapi).await?;
        let nonce: String =
            random_word::<18>().chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        let timestamp = self.now().as_secs();
        let signature = jssdk_signature(&view.ticket, &nonce, timestamp, url);
        Ok(JssdkConfig { timestamp, nonce, signature })
    }
}
