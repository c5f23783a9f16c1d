//! Claims: why a code is exchanged at most once.
//!
//! Whoever brings a code claims it in the store before anything is sent. The claim has one owner
//! for ever, so no process needs to know which others live: a claim that its owner has not settled
//! by its deadline belongs to a process that died or cannot reach the store, and then nobody else
//! knows whether the code is spent. Only when no byte was sent to WeChat the claim is taken back, as if it had never been.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use wechat::{AppId, AuthCode, OpenId, TransportError, UnionId};

use crate::{
    AppEntry, Broker, ExchangeError, Proof,
    app::App,
    key::ClientKey,
    random::random_word,
    slot::SET_BACK,
    store::{Claim, Kept, OUTCOME_KEPT, Place, StoreError, StoreResult},
};

/// Beyond WeChat's answer, the owner of a claim needs so long at most to store it, in a store that
/// answers.
const TO_SETTLE: Duration = Duration::from_secs(10);
/// How often a process that waits for a claim of another one looks at it.
const LOOK: Duration = Duration::from_millis(250);
/// How often a store that is away is tried.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A store that is away is waited for so long with what WeChat has answered.
const HOLD_ON: Duration = Duration::from_secs(300);

/// What an exchange gave, as it is told again. Kept sealed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// A user of a web authorisation.
    Identity {
        openid: String,
        unionid: Option<String>,
        scope: String,
        is_snapshot_user: bool,
        expires_at: i64,
    },
    /// A user of a mini program.
    Session { session: String, openid: String, unionid: Option<String>, expires_at: i64 },
    /// Handed to the client that brought the code, tokens and all, and not kept.
    HandedOut,
    /// WeChat refused.
    Refused { code: i64, message: String, rid: Option<String>, refused_ip: Option<String> },
    /// No answer, or none that was understood.
    Lost { reason: String },
}

/// What the exchange of a code came to: what is told again, and what is kept. The one error is that
/// nothing was sent; whatever goes wrong later is no reason to bring the code again.
pub(crate) type Exchanged = Result<(Outcome, Kept), TransportError>;

/// A code as it was brought, and by whom: those who bring it with the same proof at the same time
/// wait for one piece of work.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Brought {
    app: AppId,
    /// Keyed hash of the code.
    code: [u8; 32],
    client: String,
    /// Keyed hash of what proves a repeat. Without any, `alone` makes every one another.
    proof: Option<[u8; 32]>,
    alone: Option<String>,
}

impl Outcome {
    /// What a failed exchange comes to.
    pub(crate) fn of(error: wechat::Error) -> Result<Self, TransportError> {
        match error {
            wechat::Error::Api(error) => {
                let wechat::ApiError { code, message, rid, refused_ip } = error;
                Ok(Self::Refused { code, message, rid, refused_ip })
            }
            wechat::Error::Transport(error) if !error.sent => Err(error),
            lost @ (wechat::Error::Transport(_) | wechat::Error::Protocol(_)) => {
                Ok(Self::Lost { reason: lost.to_string() })
            }
        }
    }

    /// The outcome unless it is a failure.
    pub(crate) fn succeeded(self) -> Result<Self, ExchangeError> {
        match self {
            Self::Refused { code, message, rid, refused_ip } => {
                let error = wechat::ApiError { code, message, rid, refused_ip };
                Err(ExchangeError::Refused(error))
            }
            Self::Lost { reason } => Err(ExchangeError::MaybeSpent(reason)),
            fine => Ok(fine),
        }
    }
}

impl Broker {
    /// Exchanges a code by `exchange`, unless it was claimed before: then the outcome of that
    /// claim, if the proof shows that it was made by the same one.
    ///
    /// All of it is a task of its own, from before the claim on: a caller that goes away leaves
    /// nothing half done.
    pub(crate) async fn exchange_once<F>(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        code: &AuthCode,
        proof: Proof<'_>,
        exchange: impl FnOnce(Self, Arc<App>) -> F + Send + 'static,
    ) -> Result<Outcome, ExchangeError>
    where
        F: Future<Output = Exchanged> + Send + 'static,
    {
        let app = Arc::clone(&entry.app());
        let proof = self.hash_of_proof(proof);
        let brought = Brought {
            app: app.id.clone(),
            code: self.0.hasher.hash(&format!("code/{}", code.expose())),
            client: key.id.clone(),
            proof,
            alone: proof.is_none().then(random_word::<12>),
        };
        let (broker, work) = (self.clone(), brought.clone());
        let work = async move { broker.claim_and_exchange(&work, app, exchange).await };
        let joined = self.0.exchanges.join(&self.0.tasks, brought, work);
        match tokio::time::timeout(self.patience() + TO_SETTLE, joined).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(ExchangeError::MaybeSpent("the exchange died".to_owned())),
            Err(_) => Err(StoreError::Unavailable(
                "what WeChat answered is not stored yet; the same request gets it once it is"
                    .to_owned(),
            )
            .into()),
        }
    }

    /// How long after a claim its owner has settled it, unless the owner died.
    fn patience(&self) -> Duration {
        self.0.wechat.exchange_budget() + TO_SETTLE
    }

    async fn claim_and_exchange<F>(
        &self,
        brought: &Brought,
        app: Arc<App>,
        exchange: impl FnOnce(Self, Arc<App>) -> F + Send,
    ) -> Result<Outcome, ExchangeError>
    where
        F: Future<Output = Exchanged> + Send,
    {
        let Brought { code, client, proof, .. } = brought;
        loop {
            let now = self.now();
            let claim = Claim {
                app: app.id.clone(),
                code: *code,
                client: client.clone(),
                proof: *proof,
                owner: random_word::<12>(),
                claimed_at: now,
                deadline: now + self.patience(),
                settled_at: None,
                outcome: None,
            };
            let Some(claimed) = self.0.store.claim_code(&claim).await? else {
                return self.exchange_as_owner(&claim, app, exchange).await;
            };
            let same = claimed.client == *client && claimed.proof == *proof;
            if !same || proof.is_none() {
                self.0.counters.codes_used.add();
                return Err(ExchangeError::CodeUsed);
            }
            if let Some(outcome) = self.outcome_of(&claimed).await? {
                self.0.counters.exchanges_repeated.add();
                return Ok(outcome);
            }
        }
    }

    async fn exchange_as_owner<F>(
        &self,
        claim: &Claim,
        app: Arc<App>,
        exchange: impl FnOnce(Self, Arc<App>) -> F,
    ) -> Result<Outcome, ExchangeError>
    where
        F: Future<Output = Exchanged>,
    {
        self.0.counters.exchanges.add();
        match exchange(self.clone(), app).await {
            Ok((outcome, kept)) => self.settle(claim, outcome, kept).await,
            Err(unsent) => {
                let Claim { app, code, owner, .. } = claim;
                self.patiently(|| self.0.store.give_up_claim(app, code, owner)).await?;
                Err(ExchangeError::Unreachable(unsent))
            }
        }
    }

    async fn settle(
        &self,
        claim: &Claim,
        outcome: Outcome,
        kept: Kept,
    ) -> Result<Outcome, ExchangeError> {
        match &outcome {
            Outcome::Refused { code, rid, .. } => tracing::warn!(
                app.id = %claim.app,
                wechat.errcode = code,
                wechat.rid = rid,
                "{}: WeChat refused a code",
                claim.app
            ),
            Outcome::Lost { reason } => tracing::warn!(
                app.id = %claim.app,
                reason,
                "{}: the exchange of a code has no answer; its user must authorise again",
                claim.app
            ),
            Outcome::Identity { .. } | Outcome::Session { .. } | Outcome::HandedOut => {}
        }
        let text = serde_json::to_string(&outcome).expect("an outcome is plain data");
        let place = Place::Outcome(claim.app.clone(), claim.code);
        let sealed = self.0.sealer.seal(&place.binding(), text.as_bytes());
        let settled = self
            .patiently(|| {
                let Claim { app, code, owner, .. } = claim;
                self.0.store.settle_claim(app, code, owner, &sealed, &kept)
            })
            .await?;
        // A settling whose answer got lost has settled it.
        let ours = settled || self.is_settled_by(claim).await?;
        if ours { Ok(outcome) } else { Err(ExchangeError::CodeUsed) }
    }

    async fn is_settled_by(&self, claim: &Claim) -> StoreResult<bool> {
        let found = self.0.store.find_claim(&claim.app, &claim.code).await?;
        Ok(found.is_some_and(|found| found.owner == claim.owner && found.settled_at.is_some()))
    }

    /// The outcome of another's claim, waiting for its owner. `None`: the claim was taken back.
    async fn outcome_of(&self, claimed: &Claim) -> Result<Option<Outcome>, ExchangeError> {
        // By our own time too: the store's may be set back meanwhile.
        let enough = tokio::time::Instant::now() + self.patience();
        let mut last_look = false;
        loop {
            let found = self.0.store.find_claim(&claimed.app, &claimed.code).await?;
            let Some(claim) = found.filter(|found| found.owner == claimed.owner) else {
                return Ok(None);
            };
            let now = self.now();
            match (claim.settled_at, &claim.outcome) {
                (Some(at), Some(outcome)) if at <= now + SET_BACK && now < at + OUTCOME_KEPT => {
                    let place = Place::Outcome(claim.app.clone(), claim.code);
                    let text = self.open_sealed(&place, outcome)?;
                    let outcome = serde_json::from_str(&text)
                        .map_err(|_| StoreError::Corrupt("an outcome is none".to_owned()))?;
                    return Ok(Some(outcome));
                }
                (Some(_), _) => return Err(ExchangeError::NoLongerTold),
                (None, _) => {
                    let of_another_time = claim.claimed_at > now + SET_BACK;
                    let over = claim.deadline <= now || enough <= tokio::time::Instant::now();
                    // A store that is just back may have an owner who is about to settle.
                    if over && !of_another_time && !std::mem::replace(&mut last_look, true) {
                        tokio::time::sleep(2 * TRY_AGAIN).await;
                        continue;
                    }
                    if over || of_another_time {
                        let reason =
                            "who was exchanging it died, or cannot reach the store".to_owned();
                        return Err(ExchangeError::MaybeSpent(reason));
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Does something with the store, and waits for one that is away: WeChat will not say again
    /// what is to be stored.
    pub(crate) async fn patiently<T, F>(&self, job: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let enough = tokio::time::Instant::now() + HOLD_ON;
        let mut told = false;
        loop {
            match job().await {
                Err(err @ StoreError::Unavailable(_)) if tokio::time::Instant::now() < enough => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(error = %err, "an answer of WeChat's waits for the store");
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    /// The unionid to tell: the one that WeChat told, else the one that is remembered. What cannot
    /// be read is not told, and no reason to lose the login.
    pub(crate) async fn known_unionid(
        &self,
        app: &App,
        openid: &OpenId,
        told: Option<&UnionId>,
    ) -> Option<UnionId> {
        if told.is_some() {
            return told.cloned();
        }
        let known = self.patiently(|| self.0.store.unionid(&app.id, openid)).await;
        known.unwrap_or_else(|err| {
            tracing::warn!(app.id = %app.id, error = %err, "{}: a unionid cannot be read", app.id);
            None
        })
    }

    fn hash_of_proof(&self, proof: Proof<'_>) -> Option<[u8; 32]> {
        let (kind, value) = match proof {
            Proof::None => return None,
            Proof::Binding(value) => ("binding", value),
            Proof::IdempotencyKey(value) => ("idempotency-key", value),
        };
        // An empty one proves nothing.
        (!value.is_empty()).then(|| self.0.hasher.hash(&format!("{kind}/{value}")))
    }
}
