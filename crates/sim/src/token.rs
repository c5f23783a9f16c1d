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
    /// How many tokens of its line were minted after it.
    newer: u64,
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
    /// The one before that. Those older still keep the end that they were given then; `None` when
    /// all of them end at once.
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

    /// Tokens before the new one live on for `left`.
    pub(crate) const fn all(left: Duration) -> Self {
        Self { previous: left, older: Some(left) }
    }
}

/// Every token that was minted.
#[derive(Debug)]
pub(crate) struct TokenBook {
    minted: HashMap<String, Minted>,
    /// All of them, the oldest first but for those whose turn to be forgotten came while they lived.
    oldest_first: VecDeque<String>,
    /// Beyond as many, a dead token is forgotten, and so unknown instead of expired.
    kept: usize,
    rng: Rng,
}

impl TokenBook {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { minted: HashMap::new(), oldest_first: VecDeque::new(), kept: 200_000, rng }
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
        for token in &line.0 {
            let Some(before) = self.minted.get_mut(token) else { continue };
            // Being superseded shortens a life. Only a stated survival lengthens it: once, when
            // the token becomes older than the previous one, and never of one that is dead.
            before.ends = match (before.newer, overlap.older) {
                _ if before.ends <= now => before.ends,
                (0, _) => before.ends.min(now + overlap.previous),
                (1, Some(left)) => before.expires.min(now + left),
                (_, Some(_)) => before.ends,
                (_, None) => now,
            };
            before.newer += 1;
        }
        let token = self.write();
        let expires = now + lifetime;
        let record = Minted { appid: appid.to_owned(), expires, ends: expires, newer: 0 };
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
        // Two for each that is minted, so that the dead behind the living are reached too.
        for _ in 0..2 {
            let many = self.oldest_first.len();
            if many <= self.kept {
                return;
            }
            let Some(oldest) = self.oldest_first.pop_front() else { return };
            let lives = self.minted.get(&oldest).is_some_and(|one| now < one.ends);
            // Where nearly all live, the oldest is given up all the same.
            if lives && many <= 5 * self.kept {
                self.oldest_first.push_back(oldest);
            } else {
                self.minted.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mints a token for each of `lines`, a second after the other.
    fn mint_on(book: &mut TokenBook, lines: &mut [Line], lifetime: u64) -> Timestamp {
        let mut now = Timestamp::default();
        for line in lines {
            now = now + Duration::from_secs(1);
            book.mint(line, "wx1", (now, Duration::from_secs(lifetime)), Overlap::NONE);
        }
        now
    }

    #[test]
    fn memory_is_bounded_whoever_lives() {
        for lifetime in [10, u64::MAX] {
            let mut book = TokenBook { kept: 20, ..TokenBook::new(Rng::new(1, 1)) };
            let mut long_lived = Line::default();
            let life = (Timestamp::default(), Duration::MAX);
            let first = book.mint(&mut long_lived, "wx1", life, Overlap::NONE);
            let now = mint_on(&mut book, &mut vec![Line::default(); 1_000], lifetime);
            assert_eq!(book.minted.len(), book.oldest_first.len());
            assert!(book.minted.len() <= 5 * book.kept, "{}", book.minted.len());
            if lifetime == 10 {
                assert_eq!(book.minted.len(), book.kept);
                let state = book.find(&first).map(|one| one.state(now));
                assert_eq!(state, Some(TokenState::Live), "the dead go first");
            }
        }
    }
}
