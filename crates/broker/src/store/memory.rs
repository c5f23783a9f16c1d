//! A store in memory: what tests run on. Forgets everything when its last handle is dropped.

mod logins;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use clock::{Clock, Timestamp};
use tokio::sync::watch;
use wechat::AppId;

use self::logins::LoginState;
use super::{
    Acquired, AppRow, Change, Changes, CredentialRow, KeyRow, Lease, PassKeyRow, Place, Shared,
    Store, StoreError, StoreResult,
};
use crate::{
    audit::AuditEntry,
    credential::{CredentialId, CredentialKind, Trouble},
    ledger::{Budget, LedgerRow, Spending, beijing_day},
    seal::Sealed,
};

/// So many entries of the change log are always kept.
pub(super) const CHANGES_KEPT: u64 = 10_000;
/// The change log is trimmed each time that it has grown by so many.
pub(super) const CHANGES_TRIMMED_EVERY: u64 = 1_000;
/// The ledger reaches back so many days.
pub(super) const LEDGER_DAYS: i64 = 62;

/// A store in memory. Cloning gives another handle to the same store.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// How far the store's time is behind the clock, in milliseconds.
    behind: AtomicI64,
    unreachable: AtomicBool,
    accesses: AtomicU64,
    state: Mutex<State>,
    /// Counts the wake-ups, from 1: the cursors of [`Shared::woken`].
    wakes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    apps: BTreeMap<AppId, AppRow>,
    keys: Vec<KeyRow>,
    credentials: BTreeMap<CredentialId, CredentialRow>,
    history: BTreeMap<CredentialId, Vec<Past>>,
    troubles: BTreeMap<CredentialId, Trouble>,
    /// By app and API, then by day.
    ledger: BTreeMap<(AppId, String), BTreeMap<i64, LedgerRow>>,
    own: BTreeMap<String, Sealed>,
    /// In the order of their publication.
    pass_keys: Vec<PassKeyRow>,
    logins: LoginState,
    /// Entry number 1 comes first.
    audit: Vec<AuditEntry>,
    log: Log,
    leases: HashMap<String, Lease>,
}

/// A generation of a credential as it is remembered for reports.
#[derive(Debug)]
struct Past {
    generation: u64,
    hash: [u8; 32],
    expires_at: Timestamp,
}

/// The change log.
#[derive(Debug, Default)]
struct Log {
    newest: u64,
    /// The last of these is entry number `newest`.
    entries: VecDeque<Change>,
}

impl Log {
    fn push(&mut self, change: Change) {
        self.newest += 1;
        self.entries.push_back(change);
        if self.newest.is_multiple_of(CHANGES_TRIMMED_EVERY) {
            while self.entries.len() as u64 > CHANGES_KEPT {
                self.entries.pop_front();
            }
        }
    }

    fn after(&self, after: u64) -> Changes {
        let wanted = self.newest.checked_sub(after).and_then(|count| usize::try_from(count).ok());
        let skipped = wanted.and_then(|count| self.entries.len().checked_sub(count));
        let entries = skipped.map(|skipped| distinct(self.entries.iter().skip(skipped).cloned()));
        Changes { latest: self.newest, entries }
    }
}

/// The changes in their order, each once.
pub(super) fn distinct(changes: impl Iterator<Item = Change>) -> Vec<Change> {
    let mut seen = HashSet::new();
    changes.filter(|change| seen.insert(change.clone())).collect()
}

impl State {
    /// The current row of a credential if it has this generation.
    fn current(&mut self, id: &CredentialId, generation: u64) -> Option<&mut CredentialRow> {
        self.credentials.get_mut(id).filter(|row| row.generation == generation)
    }

    /// Forgets all about a credential. Answers whether there was anything to forget.
    fn forget(&mut self, id: &CredentialId) -> bool {
        self.history.remove(id);
        let row = self.credentials.remove(id).is_some();
        let trouble = self.troubles.remove(id).is_some();
        if row || trouble {
            self.log.push(Change::Credential(id.clone()));
        }
        row || trouble
    }

    /// The sealed values, each with its place.
    fn sealed(&self) -> impl Iterator<Item = (Place, &Sealed)> {
        let apps = self.apps.values().map(|row| (Place::AppSecret(row.app.clone()), &row.secret));
        let credentials = self
            .credentials
            .values()
            .map(|row| (Place::Credential(row.id.clone(), row.generation), &row.value));
        let own = self.own.iter().map(|(name, value)| (Place::Own(name.clone()), value));
        let pass_keys = self.pass_keys.iter().map(|row| (Place::PassKey(row.id.clone()), &row.key));
        apps.chain(credentials).chain(own).chain(pass_keys).chain(self.logins.sealed())
    }

    fn sealed_at(&mut self, place: &Place) -> Option<&mut Sealed> {
        match place {
            Place::AppSecret(app) => self.apps.get_mut(app).map(|row| &mut row.secret),
            Place::Credential(id, generation) => {
                self.current(id, *generation).map(|row| &mut row.value)
            }
            Place::Own(name) => self.own.get_mut(name),
            Place::PassKey(id) => {
                self.pass_keys.iter_mut().find(|row| row.id == *id).map(|row| &mut row.key)
            }
            of_logins => self.logins.sealed_at(of_logins),
        }
    }
}

impl MemoryStore {
    /// An empty store whose time is that of `clock`.
    pub fn new(clock: Clock) -> Self {
        Self {
            inner: Arc::new(Inner {
                clock,
                behind: AtomicI64::new(0),
                unreachable: AtomicBool::new(false),
                accesses: AtomicU64::new(0),
                state: Mutex::default(),
                wakes: watch::Sender::new(1),
            }),
        }
    }

    /// How often the store was asked or told something.
    pub fn accesses(&self) -> u64 {
        self.inner.accesses.load(Ordering::Relaxed)
    }

    /// Makes the store go out of reach, for every handle, or come back: a test's way to see what
    /// happens then.
    pub fn set_reachable(&self, reachable: bool) {
        self.inner.unreachable.store(!reachable, Ordering::Release);
    }

    /// Sets the store's clock back, for every handle, as a person might the clock of a machine.
    pub fn set_clock_back(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.inner.behind.fetch_add(millis, Ordering::AcqRel);
    }

    fn time(&self) -> Timestamp {
        self.inner.clock.now().offset_millis(-self.inner.behind.load(Ordering::Acquire))
    }

    fn reach(&self) -> StoreResult<()> {
        self.inner.accesses.fetch_add(1, Ordering::Relaxed);
        if self.inner.unreachable.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("out of reach".to_owned()));
        }
        Ok(())
    }

    fn state(&self) -> StoreResult<MutexGuard<'_, State>> {
        self.reach()?;
        Ok(self.inner.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something with the state at the store's time, and wakes those who wait when the change
    /// log has grown by it.
    fn write<T>(&self, job: impl FnOnce(&mut State, Timestamp) -> T) -> StoreResult<T> {
        let (answer, changed) = {
            let mut state = self.state()?;
            let before = state.log.newest;
            let answer = job(&mut state, self.time());
            (answer, state.log.newest != before)
        };
        if changed {
            self.bump();
        }
        Ok(answer)
    }

    fn bump(&self) {
        self.inner.wakes.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn now(&self) -> StoreResult<Timestamp> {
        self.reach()?;
        Ok(self.time())
    }

    async fn changes(&self, after: u64) -> StoreResult<Changes> {
        Ok(self.state()?.log.after(after))
    }

    async fn list_apps(&self) -> StoreResult<Vec<AppRow>> {
        Ok(self.state()?.apps.values().cloned().collect())
    }

    async fn find_app(&self, app: &AppId) -> StoreResult<Option<AppRow>> {
        Ok(self.state()?.apps.get(app).cloned())
    }

    async fn put_app(&self, row: &AppRow, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(|state, _| {
            let stored = state.apps.get(&row.app).map_or(0, |row| row.revision);
            let taken = state.apps.values().filter(|other| other.app != row.app).any(|other| {
                other.alias.as_deref() == Some(row.app.as_str())
                    || row.alias.as_deref() == Some(other.app.as_str())
                    || row.alias.is_some() && row.alias == other.alias
            });
            if row.revision.checked_sub(1) != Some(stored) || taken {
                return false;
            }
            state.apps.insert(row.app.clone(), row.clone());
            state.troubles.retain(|id, _| id.app != row.app);
            state.audit.push(audit.clone());
            state.log.push(Change::App(row.app.clone()));
            true
        })
    }

    async fn remove_app(&self, app: &AppId, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(|state, _| {
            if state.apps.remove(app).is_none() {
                return false;
            }
            state.audit.push(audit.clone());
            state.log.push(Change::App(app.clone()));
            state.logins.forget_app(app);
            for kind in CredentialKind::ALL {
                state.forget(&CredentialId { app: app.clone(), kind });
            }
            true
        })
    }

    async fn list_keys(&self) -> StoreResult<Vec<KeyRow>> {
        let mut keys = self.state()?.keys.clone();
        keys.sort_by_key(|row| row.created_at);
        Ok(keys)
    }

    async fn add_key(&self, row: &KeyRow, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(|state, _| {
            if state.keys.iter().any(|other| other.id == row.id || other.hash == row.hash) {
                return false;
            }
            state.keys.push(row.clone());
            state.audit.push(audit.clone());
            state.log.push(Change::Keys);
            true
        })
    }

    async fn revoke_key(&self, id: &str, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(|state, now| {
            let live = |row: &&mut KeyRow| row.id == id && row.revoked_at.is_none();
            let Some(row) = state.keys.iter_mut().find(live) else { return false };
            row.revoked_at = Some(now);
            state.audit.push(audit.clone());
            state.log.push(Change::Keys);
            true
        })
    }

    async fn list_credentials(&self) -> StoreResult<Vec<CredentialRow>> {
        Ok(self.state()?.credentials.values().cloned().collect())
    }

    async fn find_credential(&self, id: &CredentialId) -> StoreResult<Option<CredentialRow>> {
        Ok(self.state()?.credentials.get(id).cloned())
    }

    async fn put_credential(&self, row: &CredentialRow, over: u64) -> StoreResult<bool> {
        self.write(|state, now| {
            let stored = state.credentials.get(&row.id);
            let generation = stored.map_or(0, |stored| stored.generation);
            if generation != over || row.generation <= over || !state.apps.contains_key(&row.id.app)
            {
                return false;
            }
            let used_at = stored.map_or(row.used_at, |stored| stored.used_at.max(row.used_at));
            state.credentials.insert(row.id.clone(), CredentialRow { used_at, ..row.clone() });
            state.troubles.remove(&row.id);
            let history = state.history.entry(row.id.clone()).or_default();
            history.retain(|past| past.expires_at > now);
            history.push(Past {
                generation: row.generation,
                hash: row.hash,
                expires_at: row.expires_at,
            });
            state.log.push(Change::Credential(row.id.clone()));
            true
        })
    }

    async fn set_expiry(
        &self,
        id: &CredentialId,
        generation: u64,
        expires_at: Timestamp,
        refresh_at: Timestamp,
    ) -> StoreResult<bool> {
        self.write(|state, now| {
            let Some(row) = state.current(id, generation) else { return false };
            row.sent = row.sent.min(now);
            row.expires_at = expires_at;
            row.refresh_at = refresh_at;
            let history = state.history.get_mut(id).into_iter().flatten();
            for past in history.filter(|past| past.generation == generation) {
                past.expires_at = past.expires_at.max(expires_at);
            }
            state.troubles.remove(id);
            state.log.push(Change::Credential(id.clone()));
            true
        })
    }

    async fn mark_dead(&self, id: &CredentialId, generation: u64) -> StoreResult<bool> {
        self.write(|state, _| {
            let Some(row) = state.current(id, generation).filter(|row| !row.dead) else {
                return false;
            };
            row.dead = true;
            state.log.push(Change::Credential(id.clone()));
            true
        })
    }

    async fn set_used(&self, id: &CredentialId, at: Timestamp) -> StoreResult<()> {
        if let Some(row) = self.state()?.credentials.get_mut(id) {
            row.used_at = row.used_at.max(at);
        }
        Ok(())
    }

    async fn drop_unused(&self, id: &CredentialId, unused_since: Timestamp) -> StoreResult<bool> {
        self.write(|state, _| {
            let unused = state.credentials.get(id).is_some_and(|row| row.used_at <= unused_since);
            unused && state.forget(id)
        })
    }

    async fn find_generation(
        &self,
        id: &CredentialId,
        hash: &[u8; 32],
    ) -> StoreResult<Option<u64>> {
        let state = self.state()?;
        let now = self.time();
        let history = state.history.get(id).into_iter().flatten();
        let alive = history.filter(|past| past.hash == *hash && past.expires_at > now);
        Ok(alive.map(|past| past.generation).max())
    }

    async fn list_troubles(&self) -> StoreResult<Vec<(CredentialId, Trouble)>> {
        let state = self.state()?;
        Ok(state.troubles.iter().map(|(id, trouble)| (id.clone(), trouble.clone())).collect())
    }

    async fn find_trouble(&self, id: &CredentialId) -> StoreResult<Option<Trouble>> {
        Ok(self.state()?.troubles.get(id).cloned())
    }

    async fn set_trouble(
        &self,
        id: &CredentialId,
        revision: u64,
        trouble: Option<&Trouble>,
    ) -> StoreResult<bool> {
        self.write(|state, _| {
            let unchanged = state.apps.get(&id.app).is_some_and(|app| app.revision == revision);
            if !unchanged || state.troubles.get(id) == trouble {
                return unchanged;
            }
            match trouble {
                Some(trouble) => state.troubles.insert(id.clone(), trouble.clone()),
                None => state.troubles.remove(id),
            };
            state.log.push(Change::Credential(id.clone()));
            true
        })
    }

    async fn spend(&self, app: &AppId, api: &str, budget: &Budget) -> StoreResult<Spending> {
        self.write(|state, now| {
            let rows = state.ledger.entry((app.clone(), api.to_owned())).or_default();
            let until = Budget::newest_day(now);
            let newest = rows.range(..=until).next_back().map(|(_, row)| row);
            let (row, spending) = budget.spend(api, newest, now);
            if let Some(row) = row {
                rows.insert(row.day, row);
                *rows = rows.split_off(&(beijing_day(now) - LEDGER_DAYS));
            }
            spending
        })
    }

    async fn ledger(&self, app: &AppId) -> StoreResult<Vec<LedgerRow>> {
        let state = self.state()?;
        let oldest = beijing_day(self.time()) - LEDGER_DAYS;
        let of_app = state.ledger.iter().filter(|((owner, _), _)| owner == app);
        let mut rows: Vec<_> =
            of_app.flat_map(|(_, days)| days.range(oldest..).map(|(_, row)| row.clone())).collect();
        rows.sort_by(|a, b| b.day.cmp(&a.day).then_with(|| a.api.cmp(&b.api)));
        Ok(rows)
    }

    async fn own_secret(&self, name: &str, fresh: &Sealed) -> StoreResult<Sealed> {
        let mut state = self.state()?;
        Ok(state.own.entry(name.to_owned()).or_insert_with(|| fresh.clone()).clone())
    }

    async fn pass_keys(&self) -> StoreResult<Vec<PassKeyRow>> {
        Ok(self.state()?.pass_keys.clone())
    }

    async fn add_pass_key(
        &self,
        row: &PassKeyRow,
        last: Option<&str>,
        forget_before: Timestamp,
    ) -> StoreResult<bool> {
        let mut state = self.state()?;
        let newest = state.pass_keys.last().map(|row| row.id.as_str());
        if newest != last || state.pass_keys.iter().any(|known| known.id == row.id) {
            return Ok(false);
        }
        state.pass_keys.retain(|known| known.published_at >= forget_before);
        state.pass_keys.push(row.clone());
        state.log.push(Change::PassKeys);
        Ok(true)
    }

    async fn sealing_keys(&self) -> StoreResult<Vec<String>> {
        let state = self.state()?;
        let keys: BTreeSet<_> = state.sealed().map(|(_, value)| value.key.as_str()).collect();
        Ok(keys.into_iter().map(str::to_owned).collect())
    }

    async fn sealed_otherwise(&self, key: &str, limit: usize) -> StoreResult<Vec<(Place, Sealed)>> {
        let state = self.state()?;
        let others = state.sealed().filter(|(_, value)| value.key != key);
        Ok(others.take(limit).map(|(place, value)| (place, value.clone())).collect())
    }

    async fn reseal(&self, place: &Place, old: &Sealed, new: &Sealed) -> StoreResult<bool> {
        let mut state = self.state()?;
        let Some(value) = state.sealed_at(place).filter(|value| *value == old) else {
            return Ok(false);
        };
        *value = new.clone();
        Ok(true)
    }

    async fn add_audit(&self, entry: &AuditEntry) -> StoreResult<()> {
        self.state()?.audit.push(entry.clone());
        Ok(())
    }

    async fn list_audit(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, AuditEntry)>> {
        let state = self.state()?;
        let numbered = (1..).zip(state.audit.iter().cloned());
        let mut entries: Vec<_> =
            numbered.take_while(|(number, _)| before.is_none_or(|end| *number < end)).collect();
        entries.reverse();
        entries.truncate(limit);
        Ok(entries)
    }
}

#[async_trait]
impl Shared for MemoryStore {
    async fn now(&self) -> StoreResult<Timestamp> {
        self.reach()?;
        Ok(self.time())
    }

    async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> StoreResult<Acquired> {
        self.write(|state, now| {
            if let Some(held) = state.leases.get(name).filter(|held| held.holds(now, ttl)) {
                return Acquired::HeldUntil(held.until);
            }
            let lease = Lease { name: name.to_owned(), owner: owner.to_owned(), until: now + ttl };
            state.leases.insert(name.to_owned(), lease.clone());
            Acquired::Yes(lease)
        })
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> StoreResult<Option<Lease>> {
        self.write(|state, now| {
            let held = state.leases.get_mut(&lease.name)?;
            if held.owner != lease.owner || held.until <= now {
                return None;
            }
            held.until = now + ttl;
            Some(held.clone())
        })
    }

    async fn release(&self, lease: &Lease) -> StoreResult<()> {
        self.write(|state, _| {
            if state.leases.get(&lease.name).is_some_and(|held| held.owner == lease.owner) {
                state.leases.remove(&lease.name);
            }
        })
    }

    async fn wake(&self) -> StoreResult<()> {
        self.bump();
        Ok(())
    }

    async fn woken(&self, cursor: u64) -> StoreResult<u64> {
        let mut wakes = self.inner.wakes.subscribe();
        let woken = wakes.wait_for(|count| *count != cursor).await;
        woken
            .map(|count| *count)
            .map_err(|_| StoreError::Unavailable("the store was closed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conformance, *};

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        let fresh = async || {
            let clock = Clock::following_timers(conformance::START);
            conformance::Handles::of(&[MemoryStore::new(clock)])
        };
        conformance::run(fresh, tokio::time::advance).await;
    }

    #[test]
    fn the_change_log_is_trimmed_now_and_then() {
        let app = |at: u64| Change::App(format!("wx{at}").parse().unwrap());
        let mut log = Log::default();
        for at in 1..CHANGES_KEPT + CHANGES_TRIMMED_EVERY {
            log.push(app(at));
        }
        assert_eq!(log.after(0).entries.map(|it| it.len() as u64), Some(log.newest));
        log.push(app(0));
        assert_eq!(log.after(CHANGES_TRIMMED_EVERY - 1).entries, None);
        let kept = log.after(CHANGES_TRIMMED_EVERY).entries.unwrap();
        assert_eq!(kept.len() as u64, CHANGES_KEPT);
        assert_eq!((&kept[0], kept.last()), (&app(CHANGES_TRIMMED_EVERY + 1), Some(&app(0))));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_wakes_for_a_lease() {
        let store = MemoryStore::new(Clock::following_timers(conformance::START));
        let cursor = store.woken(0).await.unwrap();
        store.acquire("wx1", "me", Duration::from_secs(60)).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(60), store.woken(cursor));
        assert!(waiting.await.is_err());
    }
}
