//! What was done at the store and at what gives leases, as they saw it: who had which lease when, what became of the
//! tokens, what was taken from budgets.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use broker::{
    credential::CredentialId,
    ledger::{Budget, Spending},
    seal::Sealer,
    store::{Acquired, CredentialRow, Lease, Place},
};
use clock::{Clock, Timestamp};
use wechat::AppId;

/// The master keys of these ids, of which the last one seals.
pub(super) fn sealer_of(ids: &[&str]) -> Sealer {
    let keys = ids.iter().map(|id| ((*id).to_owned(), [id.as_bytes()[1]; 32]));
    Sealer::new(keys, *ids.last().expect("there is one")).expect("it is among them")
}

/// The records of one store. Cloning gives another handle to the same.
#[derive(Clone)]
pub(super) struct Records {
    clock: Clock,
    written: Arc<Mutex<Written>>,
}

/// What is written down; each list in the order in which it was done.
#[derive(Default)]
pub(super) struct Written {
    pub(super) leases: Vec<Holding>,
    pub(super) puts: Vec<Put>,
    pub(super) rows: Vec<Row>,
    pub(super) dead: Vec<Dead>,
    pub(super) spent: Vec<Spent>,
    /// When all leases were forgotten.
    pub(super) forgettings: Vec<Timestamp>,
}

/// A lease while one replica had it.
pub(super) struct Holding {
    pub(super) ip: IpAddr,
    pub(super) name: String,
    owner: String,
    pub(super) from: Timestamp,
    /// When it ran out, or would have.
    pub(super) until: Timestamp,
    pub(super) released: Option<Timestamp>,
    /// When it was forgotten before it was over, so that somebody else could have it.
    pub(super) forgotten: Option<Timestamp>,
}

/// A generation that came to the store.
pub(super) struct Put {
    pub(super) ip: IpAddr,
    pub(super) id: CredentialId,
    pub(super) generation: u64,
    pub(super) token: String,
    pub(super) at: Timestamp,
}

/// The row of a credential from one change of it on.
pub(super) struct Row {
    pub(super) id: CredentialId,
    pub(super) from: Timestamp,
    pub(super) refresh_at: Timestamp,
    pub(super) dead: bool,
}

/// A generation that was marked dead.
pub(super) struct Dead {
    pub(super) ip: IpAddr,
    pub(super) id: CredentialId,
    pub(super) generation: u64,
    pub(super) at: Timestamp,
}

/// A call that was taken from a budget, or was to be.
pub(super) struct Spent {
    pub(super) ip: IpAddr,
    pub(super) app: AppId,
    pub(super) api: String,
    pub(super) granted: bool,
    pub(super) at: Timestamp,
}

impl Holding {
    /// When somebody else could have it, unless it was forgotten.
    pub(super) fn over(&self) -> Timestamp {
        self.released.map_or(self.until, |at| at.min(self.until))
    }
}

impl Records {
    pub(super) fn by(clock: &Clock) -> Self {
        Self { clock: clock.clone(), written: Arc::default() }
    }

    pub(super) fn read(&self) -> MutexGuard<'_, Written> {
        self.written.lock().expect("nobody panics while writing")
    }

    pub(super) fn acquired(&self, ip: IpAddr, _: (&str, &str, Duration), answer: &Acquired) {
        let Acquired::Yes(Lease { name, owner, until }) = answer.clone() else { return };
        let from = self.clock.now();
        let (released, forgotten) = (None, None);
        self.read().leases.push(Holding { ip, name, owner, from, until, released, forgotten });
    }

    pub(super) fn renewed(&self, _: IpAddr, _: (&Lease, Duration), answer: &Option<Lease>) {
        if let Some(lease) = answer
            && let Some(held) = self.read().held(lease)
        {
            held.until = lease.until;
        }
    }

    pub(super) fn released(&self, _: IpAddr, (lease,): (&Lease,), (): &()) {
        let now = self.clock.now();
        if let Some(held) = self.read().held(lease) {
            held.released = Some(now);
        }
    }

    pub(super) fn put(&self, ip: IpAddr, (row, _): (&CredentialRow, u64), done: &bool) {
        if !done {
            return;
        }
        let (id, generation, at) = (row.id.clone(), row.generation, self.clock.now());
        let place = Place::Credential(id.clone(), generation);
        let sealer = sealer_of(&["k1", "k2"]);
        let token = sealer.open_text(&place.binding(), &row.value).expect("a replica sealed it");
        let mut written = self.read();
        written.puts.push(Put { ip, id: id.clone(), generation, token, at });
        written.rows.push(Row { id, from: at, refresh_at: row.refresh_at, dead: row.dead });
    }

    pub(super) fn life(
        &self,
        _: IpAddr,
        (id, _, _, refresh_at): (&CredentialId, u64, Timestamp, Timestamp),
        done: &bool,
    ) {
        let mut written = self.read();
        if *done && let Some(dead) = written.row(id).map(|row| row.dead) {
            let from = self.clock.now();
            written.rows.push(Row { id: id.clone(), from, refresh_at, dead });
        }
    }

    pub(super) fn marked(&self, ip: IpAddr, (id, generation): (&CredentialId, u64), done: &bool) {
        let mut written = self.read();
        if *done && let Some(refresh_at) = written.row(id).map(|row| row.refresh_at) {
            let (id, at) = (id.clone(), self.clock.now());
            written.rows.push(Row { id: id.clone(), from: at, refresh_at, dead: true });
            written.dead.push(Dead { ip, id, generation, at });
        }
    }

    pub(super) fn spent(
        &self,
        ip: IpAddr,
        (app, api, _): (&AppId, &str, &Budget),
        answer: &Spending,
    ) {
        let granted = matches!(answer, Spending::Granted { .. });
        let (app, api, at) = (app.clone(), api.to_owned(), self.clock.now());
        self.read().spent.push(Spent { ip, app, api, granted, at });
    }
}

impl Written {
    pub(super) fn anybody_has_a_lease(&self, now: Timestamp) -> bool {
        self.leases.iter().any(|held| held.forgotten.is_none() && now < held.over())
    }

    /// All leases were forgotten.
    pub(super) fn forget_leases(&mut self, now: Timestamp) {
        self.forgettings.push(now);
        let held = self.leases.iter_mut().filter(|it| it.forgotten.is_none() && now < it.over());
        held.for_each(|it| it.forgotten = Some(now));
    }

    fn held(&mut self, lease: &Lease) -> Option<&mut Holding> {
        self.leases.iter_mut().find(|held| held.owner == lease.owner && held.name == lease.name)
    }

    /// The newest row of a credential.
    fn row(&self, id: &CredentialId) -> Option<&Row> {
        self.rows.iter().rfind(|row| row.id == *id)
    }
}
