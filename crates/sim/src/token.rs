//! The two issuers of global tokens, and what became of every token that they minted.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use clock::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{rng::Rng, switches::Switches};

/// Who mints global tokens. The two are isolated: neither ends a token of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Issuer {
    /// `cgi-bin/token`.
    Classic,
    /// `cgi-bin/stable_token`.
    Stable,
}

/// What a business call with a token would meet now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It goes through.
    Live,
    /// 42001: the token's life ran out.
    Expired,
    /// 40001: the token was ended before its time.
    Superseded,
    /// 40001: not a token of this app.
    Unknown,
}

/// The tokens of an app that are good or were minted last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CurrentTokens {
    /// The last token of the classic issuer, dead or alive.
    pub classic: Option<String>,
    /// The last token of the stable issuer, dead or alive.
    pub stable: Option<String>,
    /// Every token that a business call may use now, of both issuers.
    pub live: Vec<String>,
}

/// What is known of a token that was minted.
#[derive(Clone, Debug)]
pub(crate) struct Minted {
    pub(crate) appid: String,
    /// When its life runs out.
    pub(crate) expires: Timestamp,
    /// When it stops working: `expires`, or earlier when it was superseded.
    pub(crate) ends: Timestamp,
}

impl Minted {
    pub(crate) fn state(&self, now: Timestamp) -> TokenState {
        if now < self.ends {
            TokenState::Live
        } else if self.ends < self.expires {
            TokenState::Superseded
        } else {
            TokenState::Expired
        }
    }
}

/// The tokens of one issuer for one app, newest first. Only those that may still work are listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line(VecDeque<String>);

impl Line {
    pub(crate) fn current(&self) -> Option<&str> {
        self.0.front().map(String::as_str)
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Forgets that there is a current token; what lives, lives on.
    pub(crate) fn forget_current(&mut self) {
        self.0.clear();
    }
}

/// How long the tokens before a new one work on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlap {
    /// The one just before.
    pub(crate) previous: Duration,
    /// Those before that; `None` when they end at once.
    pub(crate) older: Option<Duration>,
}

impl Overlap {
    /// What the switches say for an issuer.
    pub(crate) fn of(issuer: Issuer, forced: bool, switches: &Switches) -> Self {
        let secs = match issuer {
            Issuer::Classic => switches.classic_overlap_secs,
            Issuer::Stable if forced && switches.force_kills_at_once => 0,
            Issuer::Stable => switches.stable_overlap_secs,
        };
        let older = match issuer {
            Issuer::Classic if switches.older_survive_secs > 0 => {
                Some(Duration::from_secs(switches.older_survive_secs))
            }
            Issuer::Classic | Issuer::Stable => None,
        };
        Self { previous: Duration::from_secs(secs), older }
    }

    /// No token before the new one works on.
    pub(crate) const NONE: Self = Self { previous: Duration::ZERO, older: None };

    /// Every token before the new one lives on for `left`.
    pub(crate) const fn all(left: Duration) -> Self {
        Self { previous: left, older: Some(left) }
    }
}

/// Every token that was minted.
#[derive(Debug)]
pub(crate) struct TokenBook {
    minted: HashMap<String, Minted>,
    oldest_first: VecDeque<String>,
    rng: Rng,
}

impl TokenBook {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { minted: HashMap::new(), oldest_first: VecDeque::new(), rng }
    }

    /// Forgets all tokens. The generator goes on, so that none is minted twice.
    pub(crate) fn clear(&mut self) {
        self.minted.clear();
        self.oldest_first.clear();
    }

    pub(crate) fn find(&self, token: &str) -> Option<&Minted> {
        self.minted.get(token)
    }

    /// Mints the next token of a line at `now`.
    pub(crate) fn mint(
        &mut self,
        line: &mut Line,
        appid: &str,
        (now, lifetime): (Timestamp, Duration),
        overlap: Overlap,
    ) -> String {
        for (age, token) in line.0.iter().enumerate() {
            let left = match age {
                0 => Some(overlap.previous),
                _ => overlap.older,
            };
            if let Some(before) = self.minted.get_mut(token) {
                let longest = now + left.unwrap_or_default();
                // Being superseded once more shortens the life of an older token; only a stated
                // survival lengthens it, and never of one that is dead.
                before.ends = match (age, overlap.older) {
                    _ if before.ends <= now => before.ends,
                    (1.., Some(_)) => before.expires.min(longest),
                    _ => before.ends.min(longest),
                };
            }
        }
        let token = self.write();
        let expires = now + lifetime;
        let record = Minted { appid: appid.to_owned(), expires, ends: expires };
        self.minted.insert(token.clone(), record);
        self.oldest_first.push_back(token.clone());
        line.0.push_front(token.clone());
        line.0.retain(|token| self.minted.get(token).is_some_and(|one| now < one.ends));
        self.drop_oldest_dead(now);
        token
    }

    /// Ends every token of a line but the current one, or that one too.
    pub(crate) fn end(&mut self, line: &Line, now: Timestamp, current_too: bool) {
        for token in line.0.iter().skip(usize::from(!current_too)) {
            if let Some(one) = self.minted.get_mut(token) {
                one.ends = one.ends.min(now);
            }
        }
    }

    /// The look of a token: a counter of generations, base64url text, a tail of capitals.
    fn write(&mut self) -> String {
        const CAPITALS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        const BASE64URL: &[u8] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let length = 126 + self.rng.below(14) as usize;
        let body = self.rng.text(BASE64URL, length);
        let tail = self.rng.text(CAPITALS, 8);
        format!("95_{body}{tail}")
    }

    fn drop_oldest_dead(&mut self, now: Timestamp) {
        /// Beyond as many, a dead token is forgotten, and so unknown instead of expired.
        const KEPT: usize = 200_000;
        while self.oldest_first.len() > KEPT {
            let Some(oldest) = self.oldest_first.front() else { return };
            if self.minted.get(oldest).is_some_and(|one| now < one.ends) {
                return;
            }
            self.minted.remove(oldest);
            self.oldest_first.pop_front();
        }
    }
}
