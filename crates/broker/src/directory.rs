//! The apps in memory, by appid and by alias.
//!
//! The map is replaced as a whole when an app comes, goes or is renamed; what changes often is
//! inside its entries.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    app::{App, AppKind},
    credential::{CredentialId, CredentialKind},
    rate::{Bounds, Rate},
    slot::Slot,
    traffic,
};

/// An app and its credentials. A handle from [`crate::Broker::app`] stays good while the app is
/// registered, through changes of its settings.
pub struct AppEntry {
    app: ArcSwap<App>,
    rate: Rate,
    pub(crate) traffic: traffic::Place,
    token: Slot,
    jsapi_ticket: OnceLock<Box<Slot>>,
    wx_card_ticket: OnceLock<Box<Slot>>,
}

impl AppEntry {
    pub(crate) fn new(app: App, bounds: &Bounds) -> Self {
        let id = CredentialId { app: app.id.clone(), kind: CredentialKind::Token };
        Self {
            app: ArcSwap::from_pointee(app),
            rate: Rate::per_minute(bounds.app_calls_per_minute),
            traffic: traffic::Place::new(),
            token: Slot::new(id),
            jsapi_ticket: OnceLock::new(),
            wx_card_ticket: OnceLock::new(),
        }
    }

    /// The app's settings as they are now.
    pub fn app(&self) -> Guard<Arc<App>> {
        self.app.load()
    }

    /// Takes one call from what may be carried with the app's token in a minute. `false`: it comes
    /// too early.
    pub(crate) fn admit_call(&self) -> bool {
        self.rate.admit()
    }

    pub(crate) fn set_app(&self, app: App) {
        self.app.store(Arc::new(app));
    }

    /// Whether the app has this credential at all: a website app has no global token, and
    /// therefore no tickets.
    pub(crate) fn has_credentials(&self) -> bool {
        self.app().kind != AppKind::Website
    }

    /// The slot of a credential; a ticket's is made when first asked for.
    pub(crate) fn slot(&self, kind: CredentialKind) -> &Slot {
        let make = || Box::new(Slot::new(CredentialId { app: self.token.id.app.clone(), kind }));
        match kind {
            CredentialKind::Token => &self.token,
            CredentialKind::JsapiTicket => self.jsapi_ticket.get_or_init(make),
            CredentialKind::WxCardTicket => self.wx_card_ticket.get_or_init(make),
        }
    }

    /// The slots that there are.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        CredentialKind::ALL.map(|kind| self.existing_slot(kind)).into_iter().flatten()
    }

    /// The slot of a credential if there is one.
    pub(crate) fn existing_slot(&self, kind: CredentialKind) -> Option<&Slot> {
        match kind {
            CredentialKind::Token => Some(&self.token),
            CredentialKind::JsapiTicket => self.jsapi_ticket.get().map(AsRef::as_ref),
            CredentialKind::WxCardTicket => self.wx_card_ticket.get().map(AsRef::as_ref),
        }
    }
}

/// All apps by name.
#[derive(Default)]
pub(crate) struct Directory {
    by_name: ArcSwap<HashMap<String, Arc<AppEntry>>>,
}

impl Directory {
    /// The app of this appid or alias. Takes no lock.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<AppEntry>> {
        self.by_name.load().get(name).cloned()
    }

    /// Every app once.
    pub(crate) fn all(&self) -> Vec<Arc<AppEntry>> {
        let map = self.by_name.load();
        map.iter()
            .filter(|(name, entry)| entry.app().id.as_str() == name.as_str())
            .map(|(_, entry)| Arc::clone(entry))
            .collect()
    }

    /// Puts the given apps in and takes the given names out, in one replacement of the map. An app
    /// that is already in keeps its entry, and so its credentials. Answers the entries put in.
    pub(crate) fn update(
        &self,
        put: Vec<App>,
        gone: &[&str],
        bounds: &Bounds,
    ) -> Vec<Arc<AppEntry>> {
        let old = self.by_name.load_full();
        let renames = |app: &App| {
            old.get(app.id.as_str()).is_none_or(|entry| {
                let now = entry.app();
                now.alias != app.alias || now.created_at != app.created_at
            })
        };
        if gone.is_empty() && !put.iter().any(renames) {
            let entries = put.into_iter().filter_map(|app| {
                let entry = old.get(app.id.as_str())?;
                entry.set_app(app);
                Some(Arc::clone(entry))
            });
            return entries.collect();
        }
        let mut map = HashMap::clone(&old);
        let out = |map: &mut HashMap<String, Arc<AppEntry>>, id: &str| {
            let entry = map.remove(id)?;
            // Another app may have taken the alias by now.
            if let Some(alias) = &entry.app().alias
                && map.get(alias).is_some_and(|named| Arc::ptr_eq(named, &entry))
            {
                map.remove(alias);
            }
            Some(entry)
        };
        for name in gone {
            out(&mut map, name);
        }
        let mut entries = Vec::with_capacity(put.len());
        for app in put {
            let (id, alias) = (app.id.clone(), app.alias.clone());
            let known = out(&mut map, id.as_str());
            let entry = match known.filter(|it| it.app().created_at == app.created_at) {
                Some(entry) => {
                    entry.set_app(app);
                    entry
                }
                None => Arc::new(AppEntry::new(app, bounds)),
            };
            map.insert(id.as_str().to_owned(), Arc::clone(&entry));
            if let Some(alias) = alias {
                map.insert(alias, Arc::clone(&entry));
            }
            entries.push(entry);
        }
        self.by_name.store(Arc::new(map));
        entries
    }
}
