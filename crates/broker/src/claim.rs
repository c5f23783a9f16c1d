//! Claims: why a code is exchanged at most once.
//!
//! Whoever brings a code claims it in the store before anything is sent. The claim has one owner
//! for ever, so no process needs to know which others live: a claim that its owner has not settled
//! by its deadline belongs to a process that died, and then nobody knows whether the code is
//! spent. Only when no byte was sent the claim is taken back, as if it had never been.

use std::{pin::pin, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use wechat::{AuthCode, OpenId, UnionId};

use crate::{
    AppEntry, Broker, ExchangeError, Proof,
    app::App,
    key::ClientKey,
    random::random_word,
    store::{Claim, Kept, OUTCOME_KEPT, Place, StoreError, StoreResult},
};

/// Beyond WeChat's answer, the owner of a claim needs so long at most to store it.
const TO_SETTLE: Duration = Duration::from_secs(10);
/// How often those who wait for a claim of another process look at it.
const LOOK: Duration = Duration::from_millis(250);
/// A store that is away is waited for so long with what WeChat has answered.
const HOLD_ON: Duration = Duration::from_secs(300);

/// What an exchange gave, as it is told again. Kept sealed.
#[derive(Serialize, Deserialize)]
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
    /// WeChat refused.
    Refused { code: i64, message: String, rid: Option<String>, refused_ip: Option<String> },
    /// No answer, or none that was understood.
    Lost { reason: String },
}

impl Outcome {
    /// What a failed exchange comes to. An error: nothing was sent, so nothing has come of it.
    pub(crate) fn of(error: wechat::Error) -> Result<Self, ExchangeError> {
        match error {
            wechat::Error::Api(error) => {
                let wechat::ApiError { code, message, rid, refused_ip } = error;
                Ok(Self::Refused { code, message, rid, refused_ip })
            }
            wechat::Error::Transport(error) if !error.sent => {
                Err(ExchangeError::Unreachable(error))
            }
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

/// What the exchange of a code came to: what is told again, and what is kept.
pub(crate) type Exchanged = Result<(Outcome, Kept), ExchangeError>;

impl Broker {
    /// Exchanges a code by `exchange`, unless it was claimed before: then the outcome of that
    /// claim, if the proof shows that it was made by the same one.
    ///
    /// The exchange has a task of its own, which a caller that goes away does not cancel.
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
        let hash = self.0.hasher.hash(&format!("code/{}", code.expose()));
        let proof = self.hash_of_proof(proof);
        loop {
            let now = self.now();
            let claim = Claim {
                app: app.id.clone(),
                code: hash,
                client: key.id.clone(),
                proof,
                owner: random_word::<12>(),
                claimed_at: now,
                deadline: now + self.0.wechat.exchange_budget() + TO_SETTLE,
                settled_at: None,
                outcome: None,
            };
            match self.0.store.claim_code(&claim).await? {
                None => return self.exchange_as_owner(claim, app, exchange).await,
                Some(claimed) => {
                    let same = claimed.client == key.id && claimed.proof == proof;
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
        }
    }

    async fn exchange_as_owner<F>(
        &self,
        claim: Claim,
        app: Arc<App>,
        exchange: impl FnOnce(Self, Arc<App>) -> F + Send + 'static,
    ) -> Result<Outcome, ExchangeError>
    where
        F: Future<Output = Exchanged> + Send + 'static,
    {
        let patience = self.0.wechat.exchange_budget() + 2 * TO_SETTLE;
        let broker = self.clone();
        let task = self.0.tasks.spawn(async move {
            broker.0.counters.exchanges.add();
            let exchanged = exchange(broker.clone(), app).await;
            let settled = match exchanged {
                Ok((outcome, kept)) => broker.settle(&claim, outcome, kept).await,
                Err(unsent) => broker.give_up(&claim).await.and(Err(unsent)),
            };
            broker.0.claims_settled.notify_waiters();
            settled
        });
        match tokio::time::timeout(patience, task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(died)) => Err(ExchangeError::MaybeSpent(died.to_string())),
            Err(_) => Err(StoreError::Unavailable(
                "what WeChat answered is not stored yet; the same request gets it once it is"
                    .to_owned(),
            )
            .into()),
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
            Outcome::Identity { .. } | Outcome::Session { .. } => {}
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

    async fn give_up(&self, claim: &Claim) -> Result<(), ExchangeError> {
        let Claim { app, code, owner, .. } = claim;
        self.patiently(|| self.0.store.give_up_claim(app, code, owner)).await?;
        Ok(())
    }

    /// The outcome of a claim, waiting for its owner. `None`: the claim was taken back.
    async fn outcome_of(&self, claimed: &Claim) -> Result<Option<Outcome>, ExchangeError> {
        loop {
            // Listening before looking, so that nothing is missed in between.
            let mut news = pin!(self.0.claims_settled.notified());
            news.as_mut().enable();
            let found = self.0.store.find_claim(&claimed.app, &claimed.code).await?;
            let Some(claim) = found.filter(|found| found.owner == claimed.owner) else {
                return Ok(None);
            };
            match (claim.settled_at, &claim.outcome) {
                (Some(at), Some(outcome)) if self.now() < at + OUTCOME_KEPT => {
                    let place = Place::Outcome(claim.app.clone(), claim.code);
                    let text = self.open_sealed(&place, outcome)?;
                    let outcome = serde_json::from_str(&text)
                        .map_err(|_| StoreError::Corrupt("an outcome is none".to_owned()))?;
                    return Ok(Some(outcome));
                }
                (Some(_), _) => return Err(ExchangeError::CodeUsed),
                (None, _) if claim.deadline <= self.now() => {
                    let reason = "who was exchanging it died".to_owned();
                    return Err(ExchangeError::MaybeSpent(reason));
                }
                (None, _) => {}
            }
            // It ends early when the owner is in this process.
            let _ = tokio::time::timeout(LOOK, news).await;
        }
    }

    /// Does something with the store, and waits for one that is away: WeChat will not say again
    /// what is to be stored.
    pub(crate) async fn patiently<T, F>(&self, job: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        const EVERY: Duration = Duration::from_secs(1);
        let enough = tokio::time::Instant::now() + HOLD_ON;
        loop {
            match job().await {
                Err(StoreError::Unavailable(_)) if tokio::time::Instant::now() < enough => {
                    tokio::time::sleep(EVERY).await;
                }
                answer => return answer,
            }
        }
    }

    /// The unionid to tell: the one that WeChat told, else the one that is remembered.
    pub(crate) async fn known_unionid(
        &self,
        app: &App,
        openid: &OpenId,
        told: Option<&UnionId>,
    ) -> StoreResult<Option<UnionId>> {
        match told {
            Some(told) => Ok(Some(told.clone())),
            None => self.patiently(|| self.0.store.unionid(&app.id, openid)).await,
        }
    }

    fn hash_of_proof(&self, proof: Proof<'_>) -> Option<[u8; 32]> {
        match proof {
            Proof::None => None,
            Proof::Binding(value) => Some(self.0.hasher.hash(&format!("binding/{value}"))),
            Proof::IdempotencyKey(key) => {
                Some(self.0.hasher.hash(&format!("idempotency-key/{key}")))
            }
        }
    }
}
