//! One call to WeChat for a credential, and what its failure means.

use std::{sync::Arc, time::Duration};

use clock::Timestamp;
use tokio::time::Instant;
use wechat::{Mode, TicketKind};

use crate::{
    AppEntry, Broker, INVALID_TOKEN,
    app::{App, Issuer},
    credential::{CredentialId, CredentialKind, Trouble},
    error::TokenError,
    keep::{BEFORE_THE_END, OVERLAP},
    ledger::{Api, Spending, beijing_day},
    refresh::LEASE,
    slot::{Held, Slot, Value},
    store::{Lease, StoreError, StoreResult},
    traffic::FetchResult,
};

/// What a flight works on: the app as it was when the flight took off, and the lease that it holds
/// while the store can be reached.
pub(crate) struct Job<'a> {
    pub(crate) entry: &'a Arc<AppEntry>,
    pub(crate) app: &'a App,
    pub(crate) slot: &'a Slot,
    pub(crate) lease: Option<&'a Lease>,
    /// A person asked: the whole quota may be spent, not only our share.
    pub(crate) for_a_person: bool,
    /// The store was read for it, and answers as far as is known.
    pub(crate) has_read: bool,
    /// What a new generation goes over.
    pub(crate) base: Base,
}

/// The generation that there was when the flight had its lease. A put is compared with this and
/// not with what memory holds by then: memory follows what others store.
#[derive(Clone, Copy)]
pub(crate) struct Base {
    /// In memory, which goes on alone while the store is away.
    pub(crate) generation: u64,
    /// In the store.
    pub(crate) stored: u64,
}

impl Base {
    /// What memory says now.
    pub(crate) fn of(slot: &Slot) -> Self {
        let unstored = slot.state().unstored.as_ref().map(|unstored| unstored.over);
        let generation = slot.held().map_or(0, |held| held.generation);
        Self { generation, stored: unstored.unwrap_or(generation) }
    }
}

/// What WeChat answered: a token or ticket, and how long it lives from before it was asked.
pub(crate) struct Fetched {
    pub(crate) value: Value,
    pub(crate) expires_in: Duration,
    pub(crate) sent: Timestamp,
    pub(crate) answered: Timestamp,
}

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// In the way that does no harm: normal mode, or a mint where the app is on classic.
    Normal,
    /// A forced refresh, which ends the token that others hold.
    Force,
}

impl<'a> Job<'a> {
    /// A job by what memory knows.
    pub(crate) fn new(
        entry: &'a Arc<AppEntry>,
        app: &'a App,
        slot: &'a Slot,
        lease: Option<&'a Lease>,
        for_a_person: bool,
    ) -> Self {
        Self { entry, app, slot, lease, for_a_person, has_read: false, base: Base::of(slot) }
    }

    /// By how many calls the pace of a budget is shared: two kinds of tickets have one budget, and
    /// an attempt at a ticket may take two calls.
    fn shared_by(&self) -> u32 {
        if self.slot.id.kind == CredentialKind::Token { 1 } else { 4 }
    }

    /// The API that asking is charged to.
    fn api(&self, ask: Ask) -> Api {
        match (self.slot.id.kind, self.app.issuer, ask) {
            (CredentialKind::JsapiTicket | CredentialKind::WxCardTicket, ..) => Api::Ticket,
            (CredentialKind::Token, Issuer::Stable, Ask::Force) => Api::StableForce,
            (CredentialKind::Token, issuer, _) => Api::of_issuer(issuer),
        }
    }
}

impl Broker {
    /// Asks WeChat once: takes the call from the budget, sees that the lease outlasts it, sends it.
    /// `None`: the lease ran out, and nothing was sent.
    pub(crate) async fn fetch(&self, job: &Job<'_>, ask: Ask) -> Result<Option<Fetched>, Trouble> {
        let fetched = match job.slot.id.kind.ticket() {
            Some(kind) => self.fetch_ticket(job, kind).await,
            None => self.fetch_token(job, ask).await,
        };
        if let Ok(Some(Fetched { sent, answered, .. })) = &fetched {
            self.0.refresh_durations.add(answered.since(*sent));
            job.entry.count_refresh(job.slot.id.kind, FetchResult::Fine);
        }
        fetched.map_err(|mut trouble| {
            // That a forced refresh was refused is no reason to keep from asking normally.
            if let (Ask::Force, Some(at)) = (ask, trouble.retry_at) {
                trouble.retry_at = Some(at.min(self.now() + Duration::from_secs(300)));
            }
            trouble
        })
    }

    async fn fetch_token(&self, job: &Job<'_>, ask: Ask) -> Result<Option<Fetched>, Trouble> {
        let app = job.app;
        if ask == Ask::Force && job.lease.is_none() {
            // It would end the token that somebody with a lease has just got.
            let away = "there is no lease for a forced refresh".to_owned();
            return Err(self.store_trouble(&StoreError::Unavailable(away)));
        }
        self.spend(job, job.api(ask)).await?;
        // A mint ends the token before it also when we do not live to hear of it: from here on
        // that one is trusted for WeChat's overlap and no longer. (One that is not stored yet ends
        // with this process.)
        let is_stored = job.base.stored == job.base.generation;
        let ended = job.slot.held().filter(|held| {
            app.issuer == Issuer::Classic && is_stored && held.usable(self.now(), OVERLAP)
        });
        if let Some(held) = &ended {
            let end = self.now() + OVERLAP;
            if !self.set_life(job.slot, held, end, end - BEFORE_THE_END).await? {
                return Ok(None);
            }
        }
        if !self.lease_outlasts_the_call(job).await? {
            return Ok(None);
        }
        self.0.counters.fetches.add();
        let sent = self.now();
        let answer = match (app.issuer, ask) {
            (Issuer::Classic, _) => self.0.wechat.token(&app.id, &app.secret).await,
            (Issuer::Stable, Ask::Normal) => {
                self.0.wechat.stable_token(&app.id, &app.secret, Mode::Normal).await
            }
            (Issuer::Stable, Ask::Force) => {
                self.0.wechat.stable_token(&app.id, &app.secret, Mode::Force).await
            }
        };
        let issued = match answer {
            Ok(issued) => issued,
            Err(err) => {
                if let Some(held) = ended.filter(|_| !may_have_minted(&err)) {
                    // When this fails too, the token is replaced early, and no harm is done.
                    let again = self.set_life(job.slot, &held, held.expires_at, held.refresh_at);
                    again.await.unwrap_or_default();
                }
                return Err(self.fetch_failed(job, &err));
            }
        };
        let value = Value::new(issued.token.expose());
        Ok(Some(Fetched { value, expires_in: issued.expires_in, sent, answered: self.now() }))
    }

    /// Sets when the current generation ends and is to be refreshed, here and in the store.
    /// `false`: there is another by now.
    async fn set_life(
        &self,
        slot: &Slot,
        held: &Held,
        expires_at: Timestamp,
        refresh_at: Timestamp,
    ) -> Result<bool, Trouble> {
        let set = self.0.store.set_expiry(&slot.id, held.generation, expires_at, refresh_at).await;
        if !set.map_err(|err| self.store_trouble(&err))? {
            return Ok(false);
        }
        slot.update(Held { expires_at, refresh_at, ..held.clone() });
        self.wake_others().await;
        Ok(true)
    }

    /// Asks for a ticket, which takes a global token; once more if that one turns out to be dead.
    async fn fetch_ticket(
        &self,
        job: &Job<'_>,
        kind: TicketKind,
    ) -> Result<Option<Fetched>, Trouble> {
        let mut again = false;
        loop {
            let token = self.token(job.entry, None, Duration::ZERO).await;
            let token = token.map_err(|err| self.no_token_for_ticket(&err))?.token;
            self.spend(job, Api::Ticket).await?;
            if !self.lease_outlasts_the_call(job).await? {
                return Ok(None);
            }
            self.0.counters.fetches.add();
            let sent = self.now();
            match self.0.wechat.ticket(&token, kind).await {
                Ok(issued) => {
                    let value = Value::new(issued.ticket.expose());
                    let answered = self.now();
                    let expires_in = issued.expires_in;
                    return Ok(Some(Fetched { value, expires_in, sent, answered }));
                }
                Err(wechat::Error::Api(api)) if !again && INVALID_TOKEN.contains(&api.code) => {
                    again = true;
                    self.heard(job.entry, &token, None, None).await;
                }
                Err(err) => return Err(self.fetch_failed(job, &err)),
            }
        }
    }

    /// Takes a call from the budget of its API. With the store out of reach only a call that
    /// harms nobody is granted.
    pub(crate) async fn spend(&self, job: &Job<'_>, api: Api) -> Result<(), Trouble> {
        let App { id, kind, .. } = job.app;
        let budget =
            if job.for_a_person { api.budget_for_a_person(*kind) } else { api.budget(*kind) };
        match self.0.store.spend(id, api.as_str(), &budget).await {
            Ok(Spending::Granted { .. }) => Ok(()),
            Ok(Spending::Refused { retry_at, day }) => {
                self.0.counters.budget_refusals.add();
                let (api, per_day) = (api.as_str(), budget.per_day);
                tracing::error!(app.id = %id, api, day, "{id}: our budget for {api} is used up");
                let why = if day {
                    format!("our budget of {per_day} calls of {api} a day is used up")
                } else {
                    format!("calls of {api} come faster than our budget allows")
                };
                let before = job.slot.state().trouble().cloned();
                let per_day = budget.per_day / job.shared_by();
                let id = &job.slot.id;
                Err(refused_by_budget(id, before, &why, self.now(), retry_at, per_day))
            }
            Err(err) if matches!(api, Api::StableToken | Api::Ticket | Api::Probe) => {
                tracing::warn!(app.id = %id, error = %err, "{id}: the ledger cannot be reached");
                Ok(())
            }
            Err(err) => Err(self.store_trouble(&err)),
        }
    }

    /// Just before sending: the rest of the lease must outlast the call.
    async fn lease_outlasts_the_call(&self, job: &Job<'_>) -> Result<bool, Trouble> {
        /// What must be left of a lease beyond the call's time-out.
        const RESERVE: Duration = Duration::from_secs(5);
        let Some(lease) = job.lease else { return Ok(true) };
        let store_trouble = |err| self.store_trouble(&err);
        let needed = self.0.wechat.budget() + RESERVE;
        if self.shared_time().await.map_err(store_trouble)? + needed <= lease.until {
            return Ok(true);
        }
        let asked = Instant::now();
        let renewed = self.0.shared.renew(lease, LEASE).await.map_err(store_trouble)?;
        Ok(renewed.is_some() && asked.elapsed() + needed <= LEASE)
    }

    /// The time of what gives leases, or a little later: an answer that is heard late, because this
    /// process was stopped, is of before.
    pub(crate) async fn shared_time(&self) -> StoreResult<Timestamp> {
        let asked = Instant::now();
        let then = self.0.shared.now().await?;
        Ok(then + asked.elapsed())
    }

    fn no_token_for_ticket(&self, err: &TokenError) -> Trouble {
        let mut trouble = match err {
            TokenError::Unavailable { trouble, .. } => Trouble::clone(trouble),
            TokenError::TooShort { .. }
            | TokenError::Deadline { .. }
            | TokenError::NoSuchCredential => Trouble::of(err.to_string(), self.now()),
        };
        trouble.reason = format!("no ticket without a global token: {}", trouble.reason);
        trouble.last = self.now();
        // A person mends the token, and nobody tells the ticket: it looks by itself.
        let soon = self.now() + Duration::from_secs(60);
        let later = trouble.retry_at.filter(|at| *at > self.now());
        trouble.retry_at = Some(later.map_or(soon, |at| at.min(soon)));
        trouble
    }

    /// Counts and logs a failed fetch, and decides what happens next.
    fn fetch_failed(&self, job: &Job<'_>, err: &wechat::Error) -> Trouble {
        self.0.counters.fetch_failures.add();
        let refreshed = match err {
            wechat::Error::Api(api) => FetchResult::Errcode(api.code),
            wechat::Error::Transport(_) | wechat::Error::Protocol(_) => FetchResult::Unanswered,
        };
        job.entry.count_refresh(job.slot.id.kind, refreshed);
        let before = job.slot.state().trouble().cloned();
        let trouble = trouble_of(err, job, before.as_ref(), self.now());
        let (id, kind) = (&job.app.id, job.slot.id.kind.as_str());
        let Trouble { errcode, rid, failures, reason, action, .. } = &trouble;
        match action {
            Some(action) => tracing::error!(
                app.id = %id,
                credential = kind,
                wechat.errcode = errcode,
                wechat.rid = rid,
                failures,
                "{id}: refreshing the {kind} failed: {reason}. {action}"
            ),
            None => tracing::warn!(
                app.id = %id,
                credential = kind,
                wechat.errcode = errcode,
                wechat.rid = rid,
                failures,
                "{id}: refreshing the {kind} failed: {reason}"
            ),
        }
        trouble
    }

    /// The store cannot be reached, and what was wanted needs it.
    pub(crate) fn store_trouble(&self, err: &StoreError) -> Trouble {
        tracing::error!(error = %err, "the store does not do what it is asked");
        Trouble {
            action: Some("look at the store: it cannot be read or written".to_owned()),
            retry_at: Some(self.now() + Duration::from_secs(5)),
            only_here: matches!(err, StoreError::Unavailable(_)),
            ..Trouble::of(err.to_string(), self.now())
        }
    }
}

/// What a budget's refusal adds to a trouble that there was before, whose reason is the real one.
fn refused_by_budget(
    id: &CredentialId,
    before: Option<Trouble>,
    why: &str,
    now: Timestamp,
    retry_at: Timestamp,
    per_day: u32,
) -> Trouble {
    let failed_before = before.is_some();
    let mut trouble = before.unwrap_or_else(|| Trouble {
        action: Some(
            "find out what ends the token so often: somebody outside probably fetches tokens \
             with this AppSecret"
                .to_owned(),
        ),
        ..Trouble::of(String::new(), now)
    });
    if trouble.reason.is_empty() {
        why.clone_into(&mut trouble.reason);
    } else if !trouble.reason.ends_with(why) {
        trouble.reason = format!("{}; and {why}", trouble.reason);
    }
    // It goes on backing off: a refusal that is soon over must not set a pace of its own.
    trouble.failures = trouble.failures.saturating_add(u32::from(failed_before));
    trouble.last = now;
    trouble.only_here = false;
    trouble.retry_at = Some(retry_at.max(now + back_off(id, now, trouble.failures, per_day)));
    trouble
}

/// Whether WeChat may have minted a token although we have none.
fn may_have_minted(err: &wechat::Error) -> bool {
    match err {
        wechat::Error::Api(_) => false,
        wechat::Error::Transport(err) => err.sent,
        wechat::Error::Protocol(_) => true,
    }
}

/// What a failed fetch asks for: wait, a person, or nothing before the configuration changes.
fn trouble_of(
    err: &wechat::Error,
    job: &Job<'_>,
    before: Option<&Trouble>,
    now: Timestamp,
) -> Trouble {
    let failures = before.map_or(0, |trouble| trouble.failures).saturating_add(1);
    let since = before.map_or(now, |trouble| trouble.since);
    let of_token = job.slot.id.kind == CredentialKind::Token;
    let per_day = job.api(Ask::Normal).budget(job.app.kind).per_day / job.shared_by();
    let mut trouble = Trouble {
        since,
        failures,
        retry_at: Some(now + back_off(&job.slot.id, now, failures, per_day)),
        ..Trouble::of(err.to_string(), now)
    };
    let wechat::Error::Api(api) = err else { return trouble };
    trouble.errcode = Some(api.code);
    trouble.errmsg = Some(api.message.clone());
    trouble.rid = api.rid.clone();
    trouble.reason = format!("WeChat answered {}: {}", api.code, api.message);
    trouble.action = match (&api.refused_ip, api.code) {
        (Some(ip), _) => Some(format!("add {ip} to the app's IP whitelist in WeChat's console")),
        (None, 40001) if of_token => Some(
            "the AppSecret is wrong or was reset: set the new one with `xinfu app set-secret`"
                .to_owned(),
        ),
        (None, _) => api.entry().and_then(|entry| entry.human).map(str::to_owned),
    };
    let minutes = |n: u64| Duration::from_secs(60 * n);
    trouble.retry_at = match api.code {
        // For a ticket these are about the global token, which is looked after elsewhere.
        -1 | 40001 | 40014 | 42001 if api.code == -1 || !of_token => trouble.retry_at,
        // The request can only become right by another secret or appid.
        40001 | 40002 | 40013 | 40125 | 41002 | 41004 => None,
        45011 => Some(now + minutes(1) + job.slot.id.spread(now, Duration::from_secs(10))),
        45009 => Some((now + minutes(60)).min(next_beijing_midnight(now))),
        89506 => Some(now + minutes(60)),
        _ => Some(now + minutes(5)),
    };
    trouble
}

/// Doubles from a second to a minute, less up to half of it, another part each time. When that has not helped for
/// long, goes on at the pace at which the day's budget lasts a day.
fn back_off(id: &CredentialId, now: Timestamp, failures: u32, per_day: u32) -> Duration {
    /// So many quick tries come first; every budget has room for them.
    const QUICK: u32 = 12;
    const MINUTE: Duration = Duration::from_secs(60);
    let full = Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(MINUTE);
    let full =
        if failures > QUICK { full.max(Duration::from_secs(86_400) * 2 / per_day) } else { full };
    full - id.spread(now, full / 2)
}

/// When WeChat's day counts start anew, and a moment more.
fn next_beijing_midnight(now: Timestamp) -> Timestamp {
    Timestamp::from_secs((beijing_day(now) + 1) * 86_400 - 8 * 3600) + Duration::from_secs(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_a_minute_and_then_to_the_budgets_pace() {
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (12, 60), (13, 172)] {
            for at in 0..50 {
                let id = CredentialId { app: "wx1".parse().unwrap(), kind: CredentialKind::Token };
                let wait = back_off(&id, Timestamp::from_secs(at), failures, 1_000);
                assert!(wait <= Duration::from_secs(full + 1), "{failures}: {wait:?}");
                assert!(wait * 4 > Duration::from_secs(full), "{failures}: {wait:?}");
            }
        }
    }

    /// What only another configuration can mend stops; all else is tried again, some of it just to
    /// see whether the person who has to act has acted.
    #[test]
    fn what_a_refusal_leads_to_agrees_with_the_table() {
        let app = App {
            id: "wx1".parse().unwrap(),
            alias: None,
            kind: crate::app::AppKind::Official,
            issuer: Issuer::Stable,
            secret: wechat::AppSecret::new("s"),
            revision: 1,
            created_at: Timestamp::default(),
        };
        let entry = Arc::new(AppEntry::new(app.clone(), &crate::Bounds::default()));
        for (kind, stopping) in [
            (CredentialKind::Token, &[40001, 40002, 40013, 40125, 41002, 41004][..]),
            (CredentialKind::JsapiTicket, &[40002, 40013, 40125, 41002, 41004]),
        ] {
            let slot = entry.slot(kind);
            let job = Job::new(&entry, &app, slot, None, false);
            let mut stopped = Vec::new();
            for &wechat::ErrorCode { code, .. } in wechat::table() {
                let (message, rid, refused_ip) = (String::new(), None, None);
                let refusal = wechat::ApiError { code, message, rid, refused_ip };
                let action = match kind {
                    CredentialKind::Token => refusal.action_with_secret(),
                    _ => refusal.action(),
                };
                let trouble = trouble_of(&refusal.into(), &job, None, Timestamp::default());
                if trouble.retry_at.is_none() {
                    use wechat::Action::{Human, Never};
                    assert!(matches!(action, Human | Never), "{code} is {action:?}");
                    stopped.push(code);
                }
            }
            assert_eq!(stopped, stopping, "{kind:?}");
        }
    }

    #[test]
    fn a_budgets_refusal_keeps_the_real_reason() {
        let now = Timestamp::from_secs(1_000);
        let id = CredentialId { app: "wx1".parse().unwrap(), kind: CredentialKind::Token };
        let spent = "the budget is used up";
        let real = Trouble { failures: 7, ..Trouble::of("no route".to_owned(), now) };
        let once = refused_by_budget(&id, Some(real), spent, now, now, 500);
        let twice = refused_by_budget(&id, Some(once.clone()), spent, now, now, 500);
        assert_eq!(once.reason, twice.reason);
        assert_eq!(
            (once.reason.as_str(), once.failures, twice.failures),
            ("no route; and the budget is used up", 8, 9)
        );
    }
}
