//! Changing apps and client keys. Each change and its audit entry are one transaction; running
//! servers follow by themselves.

use std::collections::HashMap;

use clock::Timestamp;
use wechat::{AppId, AppSecret};

use crate::{
    AppEntry, Broker, ManageError,
    app::{App, AppKind, Issuer},
    audit::{Actor, AuditEntry},
    credential::{CredentialId, Trouble},
    key::{Apps, NewKey, Permission, Rights, key_hash},
    ledger::LedgerRow,
    path::check_pattern,
    store::{AppRow, KeyRow, Place, StoreResult},
};

/// An app to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewApp {
    /// The appid.
    pub id: AppId,
    /// Another name for it.
    pub alias: Option<String>,
    /// What kind of app it is.
    pub kind: AppKind,
    /// Who mints its global token.
    pub issuer: Issuer,
    /// Its AppSecret.
    pub secret: AppSecret,
}

/// What to change of an app; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppChange {
    /// The alias; `Some(None)` takes it away.
    pub alias: Option<Option<String>>,
    /// The kind.
    pub kind: Option<AppKind>,
    /// The issuer.
    pub issuer: Option<Issuer>,
    /// The AppSecret.
    pub secret: Option<AppSecret>,
}

/// What applying a list of apps did, by appid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Newly registered.
    pub added: Vec<String>,
    /// Changed to what the list says.
    pub changed: Vec<String>,
    /// As the list says already.
    pub unchanged: Vec<String>,
    /// Removed, for not being in the list.
    pub removed: Vec<String>,
}

/// Why a list of apps was not applied, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{error}", .at.as_deref().unwrap_or_default())]
pub struct ApplyError {
    /// Which app it is about: by its place in the list from 0 on and its appid, as in
    /// `apps[2] wx3: `, or one that is not in the list.
    pub at: Option<String>,
    /// What is wrong.
    pub error: ManageError,
    /// What had been done by then; nothing, when the list itself is wrong.
    pub done: Applied,
}

/// What sealing anew did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rekeyed {
    /// How many values were sealed anew.
    pub resealed: usize,
    /// What does not open, and why; it stays as it is.
    pub left: Vec<String>,
}

impl Broker {
    /// Registers an app.
    pub async fn add_app(&self, new: NewApp, actor: &Actor) -> Result<(), ManageError> {
        self.store_app(new, actor).await?;
        self.changed().await
    }

    /// Stores a new app; memory does not follow yet.
    async fn store_app(&self, new: NewApp, actor: &Actor) -> Result<(), ManageError> {
        check_alias(&new)?;
        check_secret(&new.secret)?;
        let now = self.0.store.now().await?;
        let row = AppRow {
            secret: self.seal_app_secret(&new.id, &new.secret),
            app: new.id,
            alias: new.alias,
            kind: new.kind,
            issuer: new.issuer,
            revision: 1,
            created_at: now,
            updated_at: now,
        };
        let detail = format!("{}, {}", row.kind.as_str(), row.issuer.as_str());
        let audit = entry(now, actor, "app.add", row.app.as_str(), detail);
        if !self.0.store.put_app(&row, &audit).await? {
            let taken = match (&row.alias, self.0.store.find_app(&row.app).await?) {
                (Some(alias), None) => alias.clone(),
                _ => row.app.as_str().to_owned(),
            };
            return Err(ManageError::NameTaken(taken));
        }
        Ok(())
    }

    /// Changes an app. A new secret or issuer ends a stop: the next refresh tries it at once.
    pub async fn change_app(
        &self,
        name: &str,
        change: AppChange,
        actor: &Actor,
    ) -> Result<(), ManageError> {
        self.follow().await?;
        let no_app = || ManageError::NoSuchApp(name.to_owned());
        let id = self.app(name).ok_or_else(no_app)?.app().id.clone();
        let old = self.0.store.find_app(&id).await?.ok_or_else(no_app)?;
        let now = self.0.store.now().await?;
        let mut what = Vec::new();
        let mut row = AppRow { revision: old.revision + 1, updated_at: now, ..old.clone() };
        if let Some(alias) = change.alias {
            row.alias = alias;
            check_name(row.alias.as_deref(), &row.app)?;
            what.push("alias");
        }
        if let Some(kind) = change.kind {
            row.kind = kind;
            what.push("kind");
        }
        if let Some(issuer) = change.issuer {
            row.issuer = issuer;
            what.push("issuer");
        }
        let secret = match change.secret {
            Some(secret) => {
                check_secret(&secret)?;
                what.push("secret");
                secret
            }
            None => AppSecret::new(self.open_sealed(&Place::AppSecret(id), &old.secret)?),
        };
        // Sealed anew also when it stays: somebody may have done so since it was read.
        row.secret = self.seal_app_secret(&row.app, &secret);
        let audit = entry(now, actor, "app.change", row.app.as_str(), what.join(", "));
        if !self.0.store.put_app(&row, &audit).await? {
            let revision = self.0.store.find_app(&row.app).await?.map(|row| row.revision);
            return Err(match (&row.alias, revision) {
                (Some(alias), Some(now)) if now == old.revision => {
                    ManageError::NameTaken(alias.clone())
                }
                _ => ManageError::Raced(row.app.as_str().to_owned()),
            });
        }
        self.changed().await
    }

    /// Removes an app with its credentials.
    pub async fn remove_app(&self, name: &str, actor: &Actor) -> Result<(), ManageError> {
        self.follow().await?;
        let no_app = || ManageError::NoSuchApp(name.to_owned());
        let id = self.app(name).ok_or_else(no_app)?.app().id.clone();
        let audit =
            entry(self.0.store.now().await?, actor, "app.remove", id.as_str(), String::new());
        if !self.0.store.remove_app(&id, &audit).await? {
            return Err(no_app());
        }
        self.changed().await
    }

    /// Makes the registered apps those of a list. Doing it twice changes nothing. Apps that the
    /// list does not name stay, unless `prune`. The whole list is checked before anything is changed.
    pub async fn apply_apps(
        &self,
        wanted: Vec<NewApp>,
        prune: bool,
        actor: &Actor,
    ) -> Result<Applied, ApplyError> {
        let mut done = Applied::default();
        let steps = async {
            self.follow().await.map_err(|err| (None, err.into()))?;
            let mut before: Vec<App> = self.apps().iter().map(|it| App::clone(&it.app())).collect();
            before.sort_unstable_by(|a, b| a.id.cmp(&b.id));
            check_list(&wanted, &before, prune)?;
            for known in &before {
                let room = self.make_room(known, &wanted, prune, actor, &mut done);
                room.await.map_err(|err| (Some(format!("app {}: ", known.id)), err))?;
            }
            for (place, new) in wanted.into_iter().enumerate() {
                let at = place_of(place, &new);
                self.apply_app(new, actor, &mut done).await.map_err(|err| (Some(at), err))?;
            }
            Ok(())
        };
        let worked = steps.await;
        // Once for all new apps: each time costs as much as there are apps.
        let followed = if done.added.is_empty() { Ok(()) } else { self.changed().await };
        match worked.and(followed.map_err(|error| (None, error))) {
            Ok(()) => Ok(done),
            Err((at, error)) => Err(ApplyError { at, error, done }),
        }
    }

    /// Removes an app that is not wanted, and takes away an alias that the list gives to another app:
    /// aliases can then move in any order, and be swapped.
    async fn make_room(
        &self,
        known: &App,
        wanted: &[NewApp],
        prune: bool,
        actor: &Actor,
        done: &mut Applied,
    ) -> Result<(), ManageError> {
        let id = known.id.as_str();
        match wanted.iter().find(|new| new.id == known.id) {
            None if prune => {
                self.remove_app(id, actor).await?;
                done.removed.push(id.to_owned());
            }
            Some(new) if new.alias != known.alias && moves(known, wanted) => {
                let change = AppChange { alias: Some(None), ..AppChange::default() };
                self.change_app(id, change, actor).await?;
                done.changed.push(id.to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    async fn apply_app(
        &self,
        new: NewApp,
        actor: &Actor,
        done: &mut Applied,
    ) -> Result<(), ManageError> {
        let id = new.id.as_str().to_owned();
        let known = self.app(&id).map(|known| App::clone(&known.app()));
        let touched = done.changed.contains(&id);
        match known.filter(|known| known.id == new.id) {
            None => {
                self.store_app(new, actor).await?;
                done.added.push(id);
            }
            Some(known) => match difference(&known, new) {
                None if touched => {}
                None => done.unchanged.push(id),
                Some(change) => {
                    self.change_app(&id, change, actor).await?;
                    if !touched {
                        done.changed.push(id);
                    }
                }
            },
        }
        Ok(())
    }

    /// Makes a client key. Its value is in the answer and nowhere else.
    pub async fn add_key(
        &self,
        name: &str,
        mut rights: Rights,
        expires_at: Option<Timestamp>,
        actor: &Actor,
    ) -> Result<NewKey, ManageError> {
        self.follow().await?;
        if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
            return Err(invalid("name", "must have 1 to 64 printable characters"));
        }
        if rights.permissions.is_empty() {
            return Err(invalid("permissions", "must name at least one permission"));
        }
        check_rights(&rights)?;
        if let Apps::Only(names) = &rights.apps {
            if names.is_empty() {
                return Err(invalid("apps", "must name at least one app"));
            }
            let resolve = |name: &String| {
                let app = self.app(name).ok_or_else(|| ManageError::NoSuchApp(name.clone()))?;
                Ok(app.app().id.as_str().to_owned())
            };
            rights.apps =
                Apps::Only(names.iter().map(resolve).collect::<Result<_, ManageError>>()?);
        }
        let now = self.0.store.now().await?;
        let key = NewKey::generate();
        let rights = serde_json::to_string(&rights).expect("rights have only string keys");
        let audit = entry(now, actor, "key.add", &key.id, format!("{name}: {rights}"));
        let row = KeyRow {
            id: key.id.clone(),
            name: name.to_owned(),
            hash: key_hash(key.expose()),
            rights,
            created_at: now,
            expires_at,
            revoked_at: None,
        };
        if !self.0.store.add_key(&row, &audit).await? {
            return Err(ManageError::Raced(key.id));
        }
        // The key works, and its value is nowhere else: whoever made it must get it.
        if let Err(err) = self.changed().await {
            tracing::warn!(key.id = key.id, error = %err, "the new key {} is read later", key.id);
        }
        Ok(key)
    }

    /// Revokes a client key by id, or by name when only one live key has it.
    pub async fn revoke_key(&self, id_or_name: &str, actor: &Actor) -> Result<(), ManageError> {
        let rows = self.keys().await?;
        let now = self.0.store.now().await?;
        let by_name: Vec<_> =
            rows.iter().filter(|row| row.name == id_or_name && row.is_live(now)).collect();
        let by_id = rows.iter().find(|row| row.id == id_or_name && row.revoked_at.is_none());
        let row = match (by_id, &by_name[..]) {
            (Some(row), _) => row,
            (None, [row]) => row,
            (None, []) => return Err(ManageError::NoSuchKey(id_or_name.to_owned())),
            (None, _) => {
                return Err(invalid("key", "is the name of several keys; give the id instead"));
            }
        };
        let audit = entry(now, actor, "key.revoke", &row.id, row.name.clone());
        if !self.0.store.revoke_key(&row.id, &audit).await? {
            return Err(ManageError::NoSuchKey(id_or_name.to_owned()));
        }
        self.changed().await
    }

    /// Notes that a person was shown the token of an app.
    pub async fn audit_token_read(&self, app: &AppEntry, actor: &Actor) -> Result<(), ManageError> {
        let now = self.0.store.now().await?;
        let id = app.app().id.clone();
        let entry = entry(now, actor, "token.read", id.as_str(), "shown".to_owned());
        Ok(self.0.store.add_audit(&entry).await?)
    }

    /// All client keys, revoked ones too.
    pub async fn keys(&self) -> StoreResult<Vec<KeyRow>> {
        self.0.store.list_keys().await
    }

    /// What has been spent of an app's quotas, newest day first.
    pub async fn ledger(&self, app: &AppId) -> StoreResult<Vec<LedgerRow>> {
        self.0.store.ledger(app).await
    }

    /// The stored trouble of a credential.
    pub async fn trouble(&self, id: &CredentialId) -> StoreResult<Option<Trouble>> {
        self.0.store.find_trouble(id).await
    }

    /// The newest audit entries, newest first.
    pub async fn audit(&self, limit: usize) -> StoreResult<Vec<(u64, AuditEntry)>> {
        self.0.store.list_audit(None, limit).await
    }

    /// Seals anew what is not sealed with the current master key. Can be stopped at any time and
    /// started again; servers go on serving. A value that does not open is left as it is, and stops
    /// nothing.
    pub async fn rekey(&self, actor: &Actor) -> Result<Rekeyed, ManageError> {
        const BATCH: usize = 200;
        let key = self.0.sealer.seal_with().to_owned();
        let mut resealed = 0;
        let mut left = HashMap::new();
        loop {
            let batch = self.0.store.sealed_otherwise(&key, BATCH + left.len()).await?;
            let new: Vec<_> =
                batch.into_iter().filter(|(place, _)| !left.contains_key(place)).collect();
            if new.is_empty() {
                break;
            }
            for (place, old) in new {
                match self.open_sealed(&place, &old) {
                    Ok(plain) => {
                        let new = self.0.sealer.seal(&place.binding(), plain.as_bytes());
                        // One that changed meanwhile is found by the next batch.
                        if self.0.store.reseal(&place, &old, &new).await? {
                            resealed += 1;
                        }
                    }
                    Err(err) => {
                        left.insert(place, err.to_string());
                    }
                }
            }
        }
        let mut left: Vec<String> = left.into_values().collect();
        left.sort_unstable();
        let now = self.0.store.now().await?;
        let detail = format!("{resealed} values; {} do not open", left.len());
        self.0.store.add_audit(&entry(now, actor, "master-key.rekey", &key, detail)).await?;
        Ok(Rekeyed { resealed, left })
    }

    /// Which master keys the store's values are sealed with.
    pub async fn sealing_keys(&self) -> StoreResult<Vec<String>> {
        self.0.store.sealing_keys().await
    }

    fn seal_app_secret(&self, app: &AppId, secret: &AppSecret) -> crate::seal::Sealed {
        let place = Place::AppSecret(app.clone());
        self.0.sealer.seal(&place.binding(), secret.expose().as_bytes())
    }

    /// After a change: memory follows now, other processes are woken.
    async fn changed(&self) -> Result<(), ManageError> {
        self.wake_others().await;
        Ok(self.follow().await?)
    }
}

fn entry(at: Timestamp, actor: &Actor, action: &str, object: &str, detail: String) -> AuditEntry {
    AuditEntry {
        at,
        actor: actor.clone(),
        action: action.to_owned(),
        object: object.to_owned(),
        detail,
    }
}

fn invalid(field: &'static str, problem: &str) -> ManageError {
    ManageError::Invalid { field, problem: problem.to_owned() }
}

fn check_alias(new: &NewApp) -> Result<(), ManageError> {
    check_name(new.alias.as_deref(), &new.id)
}

/// An alias is spelled like an appid, and is not the appid.
fn check_name(alias: Option<&str>, id: &AppId) -> Result<(), ManageError> {
    let Some(alias) = alias else { return Ok(()) };
    if alias.parse::<AppId>().is_err() {
        return Err(invalid("alias", "has 1 to 64 characters of A-Z a-z 0-9 _ -"));
    }
    if alias == id.as_str() {
        return Err(invalid("alias", "is the same as the appid; leave it out"));
    }
    Ok(())
}

fn check_secret(secret: &AppSecret) -> Result<(), ManageError> {
    let text = secret.expose();
    let plain = text.bytes().all(|b| b.is_ascii_graphic());
    if text.is_empty() || text.len() > 128 || !plain {
        return Err(invalid("secret", "has 1 to 128 printable ASCII characters, without blanks"));
    }
    Ok(())
}

/// How an app of a list is named in an error.
fn place_of(place: usize, new: &NewApp) -> String {
    format!("apps[{place}] {}: ", new.id)
}

/// Whether the alias of an app is to be the name of another one.
fn moves(known: &App, wanted: &[NewApp]) -> bool {
    let Some(alias) = known.alias.as_deref() else { return false };
    wanted.iter().any(|new| {
        new.id != known.id && (new.alias.as_deref() == Some(alias) || new.id.as_str() == alias)
    })
}

/// Checks each app of a list, and that no name is given twice: neither within the list, nor to an
/// app that stays beside it.
fn check_list(
    wanted: &[NewApp],
    before: &[App],
    prune: bool,
) -> Result<(), (Option<String>, ManageError)> {
    let mut names = HashMap::new();
    let is_wanted = |known: &&App| wanted.iter().any(|new| new.id == known.id);
    for known in before.iter().filter(|known| !prune && !is_wanted(known)) {
        let holder = format!("app `{}`, which stays", known.id);
        for name in [Some(known.id.as_str()), known.alias.as_deref()].into_iter().flatten() {
            names.insert(name, holder.clone());
        }
    }
    for (place, new) in wanted.iter().enumerate() {
        let wrong = |err| (Some(place_of(place, new)), err);
        check_alias(new).and_then(|()| check_secret(&new.secret)).map_err(wrong)?;
        let own = [("appid", Some(new.id.as_str())), ("alias", new.alias.as_deref())];
        for (field, name) in own {
            let Some(name) = name else { continue };
            let holder = format!("apps[{place}] {}", new.id);
            if let Some(other) = names.insert(name, holder) {
                return Err(wrong(invalid(field, &format!("`{name}` is a name of {other} too"))));
            }
        }
    }
    Ok(())
}

/// A path that is not in its one canonical form would never fit a call.
fn check_rights(rights: &Rights) -> Result<(), ManageError> {
    if rights.reveal && !rights.permissions.contains(&Permission::Token) {
        return Err(invalid("reveal", "is for keys that may read the token: permission `token`"));
    }
    if !rights.paths.is_empty() && !rights.permissions.contains(&Permission::Proxy) {
        return Err(invalid("paths", "are for carried calls, which need the permission `proxy`"));
    }
    if rights.reveal && !rights.paths.is_empty() {
        return Err(invalid(
            "reveal",
            "gives the token itself, with which every path can be called",
        ));
    }
    for path in &rights.paths {
        if let Err(flaw) = check_pattern(path) {
            let problem = format!(
                "hold `{path}`: {flaw}; expected are paths such as `/cgi-bin/user/info`, or `/cgi-bin/user/*` \
                 for all below"
            );
            return Err(invalid("paths", &problem));
        }
    }
    Ok(())
}

fn difference(app: &App, new: NewApp) -> Option<AppChange> {
    let change = AppChange {
        alias: (app.alias != new.alias).then_some(new.alias),
        kind: (app.kind != new.kind).then_some(new.kind),
        issuer: (app.issuer != new.issuer).then_some(new.issuer),
        secret: (app.secret != new.secret).then_some(new.secret),
    };
    (change != AppChange::default()).then_some(change)
}
