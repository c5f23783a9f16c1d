//! Following the store: what other processes change there is read again here.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use wechat::AppId;

use crate::{
    AppEntry, Broker,
    app::App,
    audit::{Actor, AuditEntry},
    credential::{CredentialId, CredentialKind, Trouble},
    key::{ClientKey, Keys},
    rate::Bounds,
    slot::{Held, SET_BACK, Slot, Value},
    store::{AppRow, Change, Changes, CredentialRow, KeyRow, Place, StoreError, StoreResult},
};

impl Broker {
    /// Reads again whatever changes, for ever. A wake-up that got lost is made good by looking
    /// from time to time.
    pub(crate) async fn follow_forever(&self) {
        /// How often to look without being woken.
        const SLOW: Duration = Duration::from_secs(30);
        /// How long to wait when the store does not answer.
        const PAUSE: Duration = Duration::from_secs(1);
        let mut cursor = 0;
        let mut reachable = true;
        let mut last = self.now();
        loop {
            // What changed while the store was out of reach may have woken nobody.
            let patience = if reachable { SLOW } else { Duration::ZERO };
            let woken = tokio::time::timeout(patience, self.0.shared.woken(cursor)).await;
            let followed = async {
                if let Ok(woken) = woken {
                    cursor = woken?;
                }
                self.sync_time().await?;
                // A store that was away may have come back without its last changes.
                if reachable { self.follow().await } else { self.reload_all().await }
            };
            match followed.await {
                Ok(()) if !reachable => {
                    reachable = true;
                    self.0.freshness.note();
                    tracing::info!("the store answers again");
                }
                Ok(()) => self.0.freshness.note(),
                Err(err) => {
                    if reachable {
                        tracing::error!(error = %err, "the store does not answer");
                    }
                    reachable = false;
                    self.0.freshness.note_failure();
                    tokio::time::sleep(PAUSE).await;
                }
            }
            let now = self.now();
            if now + SET_BACK < last {
                let behind = last.since(now).as_secs();
                tracing::warn!(clock.behind_s = behind, "the time was set back by {behind} s");
                // Deadlines of before are far in the future now.
                for entry in self.apps() {
                    self.reschedule_all(&entry);
                }
            }
            last = now;
        }
    }

    /// Looks now and then whether what replicas share answers, for ever. What broke while nobody
    /// needed it is found, and made anew, before anybody does.
    pub(crate) async fn watch_shared_forever(&self) {
        const EVERY: Duration = Duration::from_secs(2);
        loop {
            let answered = self.0.shared.now().await;
            let failed_before = self.0.shared_fails.swap(answered.is_err(), Ordering::Relaxed);
            match answered {
                Err(err) if !failed_before => {
                    tracing::error!(error = %err, "there are no leases for now");
                }
                Ok(_) if failed_before => tracing::info!("there are leases again"),
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Brings memory up to what the store holds now.
    pub(crate) async fn follow(&self) -> StoreResult<()> {
        let mut followed = self.0.followed.lock().await;
        let Changes { latest, entries } = self.0.store.changes(*followed).await?;
        match entries {
            None => self.read_everything().await?,
            Some(entries) => self.apply(entries).await?,
        }
        *followed = latest;
        Ok(())
    }

    /// Reads everything, as at the start.
    pub(crate) async fn reload_all(&self) -> StoreResult<()> {
        let mut followed = self.0.followed.lock().await;
        // The point first: what changes while we read is read again, and does no harm.
        let latest = self.0.store.changes(u64::MAX).await?.latest;
        self.read_everything().await?;
        *followed = latest;
        Ok(())
    }

    async fn read_everything(&self) -> StoreResult<()> {
        self.reload_keys().await?;
        self.reload_pass_keys().await?;
        let rows = self.0.store.list_apps().await?;
        let apps: Vec<_> = rows.iter().filter_map(|row| self.readable(self.app_of(row))).collect();
        let known = self.0.apps.all();
        let gone: Vec<_> = known
            .iter()
            .map(|entry| entry.app().id.clone())
            .filter(|id| rows.binary_search_by(|row| row.app.cmp(id)).is_err())
            .collect();
        let entries = self.put_apps(apps, &gone);
        // Who may call is known from here on, however long the rest takes.
        self.0.freshness.note();
        self.reload_credentials(&entries).await?;
        for entry in entries {
            self.reschedule_all(&entry);
            // What waited for the store goes there at once.
            for slot in entry.slots().filter(|slot| slot.state().unstored.is_some()) {
                self.0.schedule.set(&slot.id, Some(self.now()));
            }
        }
        Ok(())
    }

    /// Reads all credentials and their troubles again, in two statements however many there are.
    async fn reload_credentials(&self, entries: &[Arc<AppEntry>]) -> StoreResult<()> {
        // Before the rows: memory that changes meanwhile was brought up to later ones.
        let mut versions = HashMap::new();
        for slot in entries.iter().flat_map(|entry| entry.slots()) {
            versions.insert(slot.id.clone(), slot.version());
        }
        let mut rows = HashMap::new();
        for row in self.0.store.list_credentials().await? {
            if let Some(entry) = self.app(row.id.app.as_str()) {
                entry.slot(row.id.kind);
                rows.insert(row.id.clone(), row);
            }
        }
        let troubles = self.0.store.list_troubles().await?;
        let mut troubles: HashMap<_, _> = troubles.into_iter().collect();
        for id in troubles.keys() {
            if let Some(entry) = self.app(id.app.as_str()) {
                entry.slot(id.kind);
            }
        }
        for entry in entries {
            for slot in entry.slots() {
                let version = versions.get(&slot.id).copied().unwrap_or(Slot::FIRST_VERSION);
                let taken = self.take_row(slot, version, rows.get(&slot.id));
                match self.readable(taken) {
                    Some(true) => {}
                    Some(false) => {
                        self.reload_slot(entry, slot).await?;
                        continue;
                    }
                    // What memory has was replaced by something that cannot be read here.
                    None => slot.set(None),
                }
                self.take_trouble(slot, troubles.remove(&slot.id));
            }
        }
        Ok(())
    }

    /// What could be read of a row; one that cannot is left out, so that it stops nothing else.
    pub(crate) fn readable<T>(&self, read: StoreResult<T>) -> Option<T> {
        read.inspect_err(|err| {
            self.0.counters.unreadable_rows.add();
            tracing::error!(error = %err, "a row is left out");
        })
        .ok()
    }

    /// Reads again what has changed: apps first, all at once, since each change of their directory
    /// copies it; then what belongs to them.
    async fn apply(&self, changes: Vec<Change>) -> StoreResult<()> {
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for change in &changes {
            if let Change::App(id) = change {
                match self.0.store.find_app(id).await {
                    Ok(Some(row)) => put.extend(self.readable(self.app_of(&row))),
                    Ok(None) => gone.push(id.clone()),
                    Err(err @ StoreError::Corrupt(_)) => drop(self.readable::<()>(Err(err))),
                    Err(err) => return Err(err),
                }
            }
        }
        for id in &gone {
            tracing::info!(app.id = %id, "{id} is no longer registered");
        }
        for entry in self.put_apps(put, &gone) {
            let app = entry.app();
            tracing::info!(
                app.id = %app.id,
                app.revision = app.revision,
                "{} is registered, revision {}",
                app.id,
                app.revision
            );
            self.reload_all_slots(&entry).await?;
        }
        for change in changes {
            match change {
                Change::App(_) => {}
                Change::Keys => self.reload_keys().await?,
                Change::PassKeys => self.reload_pass_keys().await?,
                Change::Credential(id) => {
                    if let Some(entry) = self.app(id.app.as_str()) {
                        self.reload_slot(&entry, entry.slot(id.kind)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts apps into the directory and takes others out, which are not refreshed any more.
    fn put_apps(&self, put: Vec<App>, gone: &[AppId]) -> Vec<Arc<AppEntry>> {
        let names: Vec<_> = gone.iter().map(AppId::as_str).collect();
        let entries = self.0.apps.update(put, &names, &self.0.bounds);
        for app in gone {
            for kind in CredentialKind::ALL {
                self.0.schedule.set(&CredentialId { app: app.clone(), kind }, None);
            }
        }
        entries
    }

    async fn reload_all_slots(&self, entry: &AppEntry) -> StoreResult<()> {
        for slot in entry.slots() {
            self.reload_slot(entry, slot).await?;
        }
        Ok(())
    }

    /// Reads a credential and its trouble again. While a flight is about to settle both, only the
    /// credential; the flight's end reads the rest.
    pub(crate) async fn reload_slot(&self, entry: &AppEntry, slot: &Slot) -> StoreResult<()> {
        match self.reload(slot).await {
            Err(err @ StoreError::Corrupt(_)) => {
                self.readable::<()>(Err(err));
                // What memory has was replaced by something that cannot be read here.
                slot.set(None);
            }
            read => read?,
        }
        let trouble = match self.0.store.find_trouble(&slot.id).await {
            Err(err @ StoreError::Corrupt(_)) => self.readable(Err(err)),
            found => found?,
        };
        if !self.take_trouble(slot, trouble) {
            return Ok(());
        }
        if entry.has_credentials() {
            self.reschedule(slot);
        } else {
            self.0.schedule.set(&slot.id, None);
        }
        Ok(())
    }

    /// Brings one slot up to the store's row. Memory that changes while the row is read wins: it
    /// was brought up to a later row, and the row is read again.
    pub(crate) async fn reload(&self, slot: &Slot) -> StoreResult<()> {
        loop {
            let version = slot.version();
            let row = self.0.store.find_credential(&slot.id).await?;
            if self.take_row(slot, version, row.as_ref())? {
                return Ok(());
            }
        }
    }

    /// Brings one slot up to a row that was read when the slot had this version. `false`: memory has
    /// changed since.
    fn take_row(
        &self,
        slot: &Slot,
        version: u64,
        row: Option<&CredentialRow>,
    ) -> StoreResult<bool> {
        let held = row.map(|row| self.held_again(slot, row)).transpose()?;
        let state = slot.state();
        if state.unstored.is_some() {
            return Ok(true);
        }
        if slot.version() != version {
            return Ok(false);
        }
        let same = match (&held, slot.held()) {
            (None, None) => true,
            (Some(new), Some(old)) => {
                new.generation == old.generation
                    && new.sent == old.sent
                    && new.expires_at == old.expires_at
                    && new.refresh_at == old.refresh_at
                    && new.dead == old.dead
            }
            _ => false,
        };
        if !same {
            slot.set_under(&state, held);
        }
        drop(state);
        if let Some(row) = row {
            slot.mark_used(row.used_at);
        }
        Ok(true)
    }

    /// Takes over what is wrong with a credential, unless a flight is about to settle that: `false`,
    /// and the flight's end reads it.
    fn take_trouble(&self, slot: &Slot, trouble: Option<Trouble>) -> bool {
        let mut state = slot.state();
        if state.flight().is_some() {
            state.miss_change();
            return false;
        }
        // What holds for this process alone is not in the store.
        let now = self.now();
        let own = state.trouble().filter(|it| it.only_here && it.stands(now) && slot.due(now));
        let trouble = trouble.or_else(|| own.cloned());
        state.set_trouble(trouble);
        true
    }

    /// What a row holds, given what the slot holds: the same value need not be opened again, also
    /// when it has been sealed anew with a master key that is not here yet.
    fn held_again(&self, slot: &Slot, row: &CredentialRow) -> StoreResult<Held> {
        match slot.held().filter(|held| held.hash == row.hash) {
            // What is dead here may not have been marked so in the store yet.
            Some(held) => {
                Ok(Held { dead: row.dead || held.dead, ..Held::from_row(row, held.value.clone()) })
            }
            None => self.held_of(row),
        }
    }

    fn held_of(&self, row: &CredentialRow) -> StoreResult<Held> {
        let place = Place::Credential(row.id.clone(), row.generation);
        Ok(Held::from_row(row, Value::new(self.open_sealed(&place, &row.value)?)))
    }

    fn app_of(&self, row: &AppRow) -> StoreResult<App> {
        let secret = self.open_sealed(&Place::AppSecret(row.app.clone()), &row.secret)?;
        Ok(App {
            id: row.app.clone(),
            alias: row.alias.clone(),
            kind: row.kind,
            issuer: row.issuer,
            secret: wechat::AppSecret::new(secret),
            revision: row.revision,
            created_at: row.created_at,
        })
    }

    fn reschedule_all(&self, entry: &AppEntry) {
        if !entry.has_credentials() {
            return;
        }
        for slot in entry.slots() {
            self.reschedule(slot);
        }
    }

    async fn reload_keys(&self) -> StoreResult<()> {
        let rows = self.0.store.list_keys().await?;
        let before = self.0.keys.load_full();
        let before = &before.by_hash;
        let mut keys = HashMap::with_capacity(rows.len());
        for row in rows.iter().filter(|row| row.revoked_at.is_none()) {
            let read = known_or_new(before.get(&row.hash), row, &self.0.bounds);
            if let Some(key) = self.readable(read) {
                keys.insert(row.hash, key);
            }
        }
        let keys = Arc::new(Keys::new(keys));
        self.0.keys.store(Arc::clone(&keys));
        self.0.revealed.keep_only(&keys);
        let keys = &keys.by_hash;
        let is_new = |hash| !before.is_empty() && !before.contains_key(hash);
        for (_, key) in keys.iter().filter(|(hash, _)| is_new(*hash)) {
            tracing::info!(key.id = key.id, "the client key {} may be used", key.id);
        }
        for (_, key) in before.iter().filter(|(hash, _)| !keys.contains_key(*hash)) {
            tracing::info!(key.id = key.id, "the client key {} may not be used any more", key.id);
            // What a revoked key did until now is wanted most of all.
            self.write_aggregates_of(key).await;
        }
        Ok(())
    }

    /// Writes the aggregate entries of the audit log every hour.
    pub(crate) async fn write_aggregates_forever(&self) {
        const EVERY: Duration = Duration::from_secs(3600);
        loop {
            self.0.clock.sleep_until(self.0.clock.now() + EVERY).await;
            self.write_aggregates().await;
        }
    }

    /// Forgets what is kept of logins for a time only.
    pub(crate) async fn forget_past_logins_forever(&self) {
        const EVERY: Duration = Duration::from_secs(60);
        const AT_ONCE: usize = 1_000;
        loop {
            self.0.clock.sleep_until(self.0.clock.now() + EVERY).await;
            loop {
                match self.0.store.forget_past_logins(AT_ONCE).await {
                    Ok(forgotten) if forgotten >= AT_ONCE => {}
                    Ok(_) => break,
                    Err(err) => {
                        tracing::warn!(error = %err, "what is past was not forgotten yet");
                        break;
                    }
                }
            }
        }
    }

    /// Writes what each client key has done since the last time.
    pub(crate) async fn write_aggregates(&self) {
        for key in self.0.keys.load_full().by_hash.values() {
            self.write_aggregates_of(key).await;
        }
    }

    async fn write_aggregates_of(&self, key: &ClientKey) {
        let (reads, unfounded) = key.take_counts();
        if (reads, unfounded) == (0, 0) {
            return;
        }
        let entry = AuditEntry {
            at: self.now(),
            actor: Actor::Key(key.id.clone()),
            action: "token.read".to_owned(),
            object: key.id.clone(),
            detail: format!("{reads} times; {unfounded} unfounded reports"),
        };
        if let Err(err) = self.0.store.add_audit(&entry).await {
            key.add_counts((reads, unfounded));
            self.0.counters.audit_failures.add();
            tracing::warn!(key.id = key.id, error = %err, "what a key did was not audited yet");
        }
    }
}

/// The key as memory has it, with its counts, when nothing about it has changed.
fn known_or_new(
    known: Option<&Arc<ClientKey>>,
    row: &KeyRow,
    bounds: &Bounds,
) -> StoreResult<Arc<ClientKey>> {
    let new = ClientKey::from_row(row, bounds)?;
    match known {
        Some(known) if known.rights == new.rights && known.expires_at == new.expires_at => {
            Ok(Arc::clone(known))
        }
        Some(known) => {
            new.go_on_from(known);
            Ok(Arc::new(new))
        }
        None => Ok(Arc::new(new)),
    }
}
