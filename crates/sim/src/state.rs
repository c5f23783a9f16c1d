//! What the simulated WeChat remembers, and what happens to it at one instant.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use clock::Timestamp;

use crate::{
    app::{AppSpec, UserSpec},
    calls::{CallEntry, CallLog},
    connect::{DuplicateCallbacks, Visits},
    content::Content,
    faults::Faults,
    mini::Sessions,
    oauth::GrantBook,
    quota::Used,
    rng::{Rng, short_hash},
    switches::Switches,
    token::{CurrentTokens, Issuer, Line, Overlap, TokenBook, TokenState},
};

/// Path of mints by somebody outside, in the log of calls.
pub(crate) const FOREIGN: &str = "(foreign)";

/// Everything that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) apps: BTreeMap<String, App>,
    pub(crate) tokens: TokenBook,
    pub(crate) grants: GrantBook,
    pub(crate) visits: Visits,
    pub(crate) switches: Switches,
    pub(crate) faults: Faults,
    pub(crate) calls: CallLog,
    pub(crate) rids: Rng,
    pub(crate) secrets: Rng,
}

/// An app and what it was given.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) spec: AppSpec,
    /// As it was added, whatever became of it since.
    added: AppSpec,
    pub(crate) classic: Line,
    pub(crate) stable: Line,
    pub(crate) last_force: Option<Timestamp>,
    pub(crate) used: Used,
    /// By type, newest first.
    pub(crate) tickets: BTreeMap<&'static str, Vec<IssuedTicket>>,
    /// By openid, which is the order of the follower list too.
    pub(crate) users: BTreeMap<String, UserSpec>,
    pub(crate) sessions: Sessions,
    pub(crate) content: Content,
    pub(crate) duplicate_callbacks: Option<DuplicateCallbacks>,
}

/// A ticket and when it was issued.
#[derive(Clone, Debug)]
pub(crate) struct IssuedTicket {
    pub(crate) ticket: String,
    pub(crate) issued: Timestamp,
}

impl App {
    pub(crate) fn new(spec: AppSpec) -> Self {
        Self {
            added: spec.clone(),
            spec,
            classic: Line::default(),
            stable: Line::default(),
            last_force: None,
            used: Used::default(),
            tickets: BTreeMap::new(),
            users: BTreeMap::new(),
            sessions: Sessions::default(),
            content: Content::default(),
            duplicate_callbacks: None,
        }
    }

    /// Puts another description in the place of the one it was added with.
    pub(crate) fn replace(&mut self, spec: AppSpec) {
        self.added = spec.clone();
        self.spec = spec;
    }

    pub(crate) const fn line(&mut self, issuer: Issuer) -> &mut Line {
        match issuer {
            Issuer::Classic => &mut self.classic,
            Issuer::Stable => &mut self.stable,
        }
    }

    pub(crate) fn allows(&self, ip: IpAddr) -> bool {
        self.spec
            .ip_whitelist
            .as_ref()
            .is_none_or(|list| list.iter().any(|one| one.to_canonical() == ip))
    }

    /// Forgets what was given out and what was changed; the app as it was added and its users stay.
    fn forget(&mut self) {
        let users = std::mem::take(&mut self.users);
        *self = Self { users, ..Self::new(self.added.clone()) };
    }
}

impl State {
    pub(crate) fn new(seed: u64, switches: Switches) -> Self {
        Self {
            apps: BTreeMap::new(),
            tokens: TokenBook::new(Rng::new(seed, 1)),
            grants: GrantBook::new(Rng::new(seed, 4)),
            visits: Visits::new(Rng::new(seed, 5)),
            switches,
            faults: Faults::new(seed),
            calls: CallLog::default(),
            rids: Rng::new(seed, 2),
            secrets: Rng::new(seed, 3),
        }
    }

    /// Forgets tokens, codes, grants, sessions, tickets, used quotas, faults, calls and changes of
    /// apps.
    pub(crate) fn reset(&mut self, switches: Switches) {
        self.switches = switches;
        self.tokens.clear();
        self.grants.clear();
        self.visits.clear();
        self.faults.restart();
        self.calls.clear();
        for app in self.apps.values_mut() {
            app.forget();
        }
    }

    /// Mints a token for an app; the ones before it live on as the switches or `overlap` say.
    pub(crate) fn mint(
        &mut self,
        appid: &str,
        issuer: Issuer,
        now: Timestamp,
        overlap: Overlap,
    ) -> Option<String> {
        let app = self.apps.get_mut(appid)?;
        let lifetime = Duration::from_secs(self.switches.token_lifetime_secs);
        Some(self.tokens.mint(app.line(issuer), appid, (now, lifetime), overlap))
    }

    /// Somebody outside mints a token. It counts for no quota, but stands in the log.
    pub(crate) fn foreign_mint(
        &mut self,
        appid: &str,
        issuer: Issuer,
        kill: bool,
        now: Timestamp,
    ) -> Option<String> {
        let overlap = if kill { Overlap::NONE } else { Overlap::of(issuer, true, &self.switches) };
        let token = self.mint(appid, issuer, now, overlap)?;
        self.calls.push(CallEntry {
            seq: 0,
            sent_at: now.as_millis(),
            decided_at: now.as_millis(),
            answered_at: Some(now.as_millis()),
            method: String::new(),
            path: FOREIGN.to_owned(),
            appid: appid.to_owned(),
            errcode: Some(0),
            rid: None,
            client_ip: None,
            token: None,
            code: None,
            answered: Some(short_hash(&token)),
            force: issuer == Issuer::Stable,
            faults: Vec::new(),
        });
        Some(token)
    }

    /// Ends the tokens of an app before their time.
    pub(crate) fn invalidate(
        &mut self,
        appid: &str,
        only: Option<Issuer>,
        sticky: bool,
        now: Timestamp,
    ) {
        let Some(app) = self.apps.get_mut(appid) else { return };
        for issuer in [Issuer::Classic, Issuer::Stable] {
            if only.is_none_or(|only| only == issuer) {
                let line = app.line(issuer);
                self.tokens.end(line, now, true);
                if !sticky {
                    line.forget_current();
                }
            }
        }
    }

    pub(crate) fn token_state(&self, appid: &str, token: &str, now: Timestamp) -> TokenState {
        match self.tokens.find(token) {
            Some(minted) if minted.appid == appid => minted.state(now),
            _ => TokenState::Unknown,
        }
    }

    pub(crate) fn current_tokens(&self, appid: &str, now: Timestamp) -> CurrentTokens {
        let Some(app) = self.apps.get(appid) else { return CurrentTokens::default() };
        let live = app
            .classic
            .tokens()
            .chain(app.stable.tokens())
            .filter(|token| self.token_state(appid, token, now) == TokenState::Live);
        CurrentTokens {
            classic: app.classic.current().map(str::to_owned),
            stable: app.stable.current().map(str::to_owned),
            live: live.map(str::to_owned).collect(),
        }
    }

    pub(crate) fn ticket_works(&self, appid: &str, ticket: &str, now: Timestamp) -> bool {
        let grace = Duration::from_secs(self.switches.ticket_grace_secs);
        let lasts = TICKET_LIFE.saturating_add(grace);
        self.apps.get(appid).is_some_and(|app| {
            app.tickets
                .values()
                .flatten()
                .any(|one| one.ticket == ticket && now < one.issued + lasts)
        })
    }

    /// A new AppSecret: 32 hexadecimal digits.
    pub(crate) fn write_secret(&mut self) -> String {
        self.secrets.text(b"0123456789abcdef", 32)
    }
}

/// How long the same ticket is handed out.
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(7200);
