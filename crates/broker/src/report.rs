//! Reports: somebody says that a token does not work.
//!
//! A report names the token, so that a late one is told from a new one: of an older generation, the
//! current token is the answer and WeChat is not asked. Of the current one, it is checked, once at
//! a time and at most every ten seconds, before anything is replaced. When we saw the refusal
//! ourselves, of a call that was sent after the last check, it is checked sooner.

use std::{sync::Arc, time::Duration};

use clock::Timestamp;
use wechat::GlobalToken;

use crate::{
    AppEntry, Broker, ReportError, TokenError, TokenView,
    app::Issuer,
    credential::{CredentialKind, Trouble},
    fetch::{Ask, Job},
    keep::OVERLAP,
    key::ClientKey,
    ledger::Api,
    refresh::{Why, Worked},
    slot::{Flight, Held, Slot, Verdict},
};

/// The errcodes that mean "this token does not work".
pub const INVALID_TOKEN: [i64; 3] = [40001, 40014, 42001];

/// What there is to say to a report.
enum Answered {
    /// The token is not the current one any more, or is known to be dead.
    Replaced,
    /// It was checked a moment ago, and works.
    Unfounded,
    /// It was checked a moment ago, and nothing could be found out.
    Unclear,
    /// Something is under way that may answer it.
    Wait(Flight),
    /// It is being checked.
    Started(Flight),
}

/// What normal mode says when asked for another token.
enum Another {
    /// There is one, and this came of keeping it; or the lease ran out.
    Kept(Worked),
    /// The same.
    Same,
    /// It could not be asked, for this reason.
    NoAnswer(Trouble),
}

/// What a probe says of a token.
enum Probed {
    Alive,
    Dead,
    Unclear,
}

impl Broker {
    /// Takes a report that `token` got `errcode` at WeChat, and answers with the token to use now:
    /// the same one when it turns out to work.
    pub async fn report(
        &self,
        entry: &Arc<AppEntry>,
        key: Option<&ClientKey>,
        token: &GlobalToken,
        errcode: i64,
    ) -> Result<TokenView, ReportError> {
        self.take_report(entry, key, token, errcode).await?;
        Ok(self.token(entry, key, Duration::ZERO).await?)
    }

    /// Takes a report from somebody who may not read tokens.
    pub async fn take_report(
        &self,
        entry: &Arc<AppEntry>,
        key: Option<&ClientKey>,
        token: &GlobalToken,
        errcode: i64,
    ) -> Result<(), ReportError> {
        if !INVALID_TOKEN.contains(&errcode) {
            return Err(ReportError::NotAboutTheToken(errcode));
        }
        if !entry.has_credentials() {
            return Err(ReportError::Token(TokenError::NoSuchCredential));
        }
        if self.heard(entry, token, key, None).await {
            return Ok(());
        }
        let retry_after = Duration::from_secs(1);
        Err(ReportError::Token(TokenError::Deadline { retry_after }))
    }

    /// Hears that a token failed: checks it if it is the current one, and replaces it if need be.
    /// `sent` is when the call that failed was sent, at the earliest, where that is known. Answers
    /// whether that was done in time: another process may hold the lease. If not, it goes on.
    pub(crate) async fn heard(
        &self,
        entry: &Arc<AppEntry>,
        token: &GlobalToken,
        key: Option<&ClientKey>,
        sent: Option<Timestamp>,
    ) -> bool {
        let checked = self.checked(entry, token, key, sent);
        tokio::time::timeout(self.flight_patience(), checked).await.is_ok()
    }

    async fn checked(
        &self,
        entry: &Arc<AppEntry>,
        token: &GlobalToken,
        key: Option<&ClientKey>,
        sent: Option<Timestamp>,
    ) {
        self.0.counters.reports.add();
        let slot = entry.slot(CredentialKind::Token);
        let hash = self.0.hasher.hash(token.expose());
        let key_id = key.map_or("", |key| key.id.as_str());
        let Some(generation) = self.generation_of(slot, &hash).await else {
            self.0.counters.reports_unknown.add();
            let app = &slot.id.app;
            tracing::warn!(
                app.id = %app,
                key.id = key_id,
                "{app}: a token that is not ours was reported"
            );
            return;
        };
        loop {
            match self.answer_report(entry, slot, generation, sent) {
                Answered::Replaced | Answered::Unclear => return,
                Answered::Unfounded => {
                    self.0.counters.reports_unfounded.add();
                    if let Some(key) = key {
                        key.count_unfounded();
                    }
                    return;
                }
                Answered::Wait(flight) => {
                    flight.ended().await;
                }
                Answered::Started(flight) => {
                    let began = self.now();
                    flight.ended().await;
                    let mut state = slot.state();
                    let found = |it: &Verdict| it.generation == generation && it.at >= began;
                    if !state.verdict.as_deref().is_some_and(found) {
                        // If it is not replaced either, it could not be checked; asking again at
                        // once would make a loop of that.
                        let before = state.verdict.as_deref();
                        let seen = sent.is_some();
                        let verdict = Verdict::new(before, generation, self.now(), false, seen);
                        state.verdict = Some(Box::new(verdict));
                    }
                }
            }
        }
    }

    /// What there is to say to a report of `generation` now. Starts the check when nothing is
    /// known and nothing is under way; a flight that was under way before may answer the report,
    /// or the token is checked after it.
    fn answer_report(
        &self,
        entry: &Arc<AppEntry>,
        slot: &Slot,
        generation: u64,
        sent: Option<Timestamp>,
    ) -> Answered {
        let mut state = slot.state();
        if slot.held().is_none_or(|held| held.generation != generation || held.dead) {
            return Answered::Replaced;
        }
        let now = self.now();
        let kept = |verdict: &Verdict| {
            // That a call fails which was sent after the check is news.
            let news = verdict.alive && sent.is_some_and(|sent| verdict.at <= sent);
            let until = verdict.at + if news { verdict.news_after } else { Verdict::KEPT };
            verdict.generation == generation && verdict.at <= now && now < until
        };
        if let Some(verdict) = state.verdict.as_deref().filter(|it| kept(it)) {
            return if verdict.alive { Answered::Unfounded } else { Answered::Unclear };
        }
        if let Some(flight) = state.flight() {
            return Answered::Wait(flight);
        }
        tracing::info!(
            app.id = %slot.id.app,
            generation,
            "{}: checking generation {generation}, which was reported",
            slot.id
        );
        let why = Why::Reported { generation, seen: sent.is_some() };
        Answered::Started(self.start(entry, CredentialKind::Token, why, &mut state))
    }

    /// Which of our generations a token is. `None`: none whose life has not ended.
    async fn generation_of(&self, slot: &Slot, hash: &[u8; 32]) -> Option<u64> {
        let current = |held: Arc<Held>| (held.hash == *hash).then_some(held.generation);
        if let Some(generation) = slot.held().and_then(current) {
            return Some(generation);
        }
        // Another process may have stored it a moment ago, or long ago if we do not follow.
        let looked_up = async {
            self.reload(slot).await?;
            self.0.store.find_generation(&slot.id, hash).await
        };
        looked_up.await.unwrap_or_else(|err| {
            tracing::warn!(error = %err, "a reported token cannot be looked up");
            None
        })
    }

    /// Checks the current token under the lease. Stable: normal mode tells whether there is
    /// another; when there is none or it cannot be asked, and on classic, the token itself is
    /// tried. `seen`: we saw ourselves that it failed.
    pub(crate) async fn check(
        &self,
        job: &Job<'_>,
        generation: u64,
        seen: bool,
    ) -> Result<Worked, Trouble> {
        let Job { slot, .. } = *job;
        let Some(held) = slot.held().filter(|held| held.generation == generation && !held.dead)
        else {
            return Ok(Worked::Done);
        };
        let stable = job.app.issuer == Issuer::Stable;
        // While a trouble stands WeChat is not asked for tokens, by nobody.
        let known = || slot.state().trouble().cloned().filter(|it| it.stands(self.now()));
        let mut unasked =
            if job.has_read { self.heed_others(slot).await.err().or_else(known) } else { known() };
        let mut same = false;
        if stable && unasked.is_none() {
            match self.ask_for_another(job, &held).await? {
                Another::Kept(worked) => return Ok(worked),
                Another::Same => same = true,
                Another::NoAnswer(trouble) => unasked = Some(trouble),
            }
        }
        let alive = match self.probe(job, &held).await {
            Probed::Dead => {
                self.note_foreign_refresh(&held, slot);
                // Only a token that normal mode sticks to is worth a forced refresh.
                let ask = if same { Ask::Force } else { Ask::Normal };
                return self.replace_dead(job, &held, ask, unasked).await;
            }
            Probed::Alive => true,
            Probed::Unclear => false,
        };
        let mut state = slot.state();
        let verdict = Verdict::new(state.verdict.as_deref(), generation, self.now(), alive, seen);
        state.verdict = Some(Box::new(verdict));
        drop(state);
        // Why WeChat gives no token stands for the next report too, and for the refresh to come.
        unasked.map_or(Ok(Worked::Done), Err)
    }

    /// Stops serving a token and gets another, unless something stands against asking.
    async fn replace_dead(
        &self,
        job: &Job<'_>,
        held: &Held,
        ask: Ask,
        unasked: Option<Trouble>,
    ) -> Result<Worked, Trouble> {
        let slot = job.slot;
        if let Some(unstored) = &mut slot.state().unstored {
            unstored.row.dead = true;
        }
        slot.update(Held { dead: true, ..held.clone() });
        // Here it is not served any more, whether or not others can be told.
        if let Err(err) = self.0.store.mark_dead(&slot.id, held.generation).await {
            tracing::error!(
                app.id = %slot.id.app,
                credential = slot.id.kind.as_str(),
                error = %err,
                "{}: that it is dead is not stored yet",
                slot.id
            );
        }
        self.wake_others().await;
        match unasked {
            Some(trouble) => Err(trouble),
            None => self.replace(job, ask).await,
        }
    }

    /// Asks normal mode whether WeChat has another token by now, and keeps it.
    async fn ask_for_another(&self, job: &Job<'_>, held: &Held) -> Result<Another, Trouble> {
        let fetched = match self.fetch(job, Ask::Normal).await {
            Ok(Some(fetched)) => fetched,
            Ok(None) => return Ok(Another::Kept(Worked::LeaseLost)),
            Err(trouble) => return Ok(Another::NoAnswer(trouble)),
        };
        if self.0.hasher.hash(fetched.value.expose()) == held.hash {
            return Ok(Another::Same);
        }
        self.note_foreign_refresh(held, job.slot);
        self.keep(job, fetched).await.map(Another::Kept)
    }

    /// Tries a token on a call that changes nothing.
    async fn probe(&self, job: &Job<'_>, held: &Held) -> Probed {
        if self.spend(job, Api::Probe).await.is_err() {
            return Probed::Unclear;
        }
        let token = GlobalToken::new(Arc::clone(held.value.expose()));
        match self.0.wechat.api_domain_ips(&token).await {
            Ok(_) => Probed::Alive,
            Err(wechat::Error::Api(api)) if INVALID_TOKEN.contains(&api.code) => Probed::Dead,
            Err(err) => {
                let id = &job.app.id;
                tracing::warn!(app.id = %id, error = %err, "{id}: a probe told nothing");
                Probed::Unclear
            }
        }
    }

    /// Counts and logs that somebody outside ended a token before its time.
    fn note_foreign_refresh(&self, held: &Held, slot: &Slot) {
        let now = self.now();
        // So near its end WeChat hands out the next one by itself.
        if now >= held.refresh_at || now >= held.expires_at - OVERLAP {
            return;
        }
        self.0.counters.foreign_refreshes.add();
        tracing::error!(
            app.id = %slot.id.app,
            generation = held.generation,
            left_s = held.expires_at.since(now).as_secs(),
            "{}: somebody outside ended the app's token before its time",
            slot.id.app
        );
    }
}
