//! `xinfu key`: the client keys that services call with.

use std::{collections::BTreeSet, time::Duration};

use broker::{
    ManageError,
    key::{Apps, Permission, Rights},
    store::KeyRow,
};
use clock::Timestamp;
use serde_json::{Value, json};

use super::{
    Console, Failure,
    app::row,
    open::{Open, Place},
    status,
};
use crate::config::span;

/// What to do with client keys.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a key and print it; it is never shown again
    #[command(group = clap::ArgGroup::new("rights").required(true))]
    #[command(group = clap::ArgGroup::new("reach").multiple(true))]
    Add {
        /// What people call it: the service that will use it
        name: String,
        /// What it may do: token, report, tickets, users, oauth, proxy, session-key, clear-quota;
        /// several separated by commas
        #[arg(long, value_delimiter = ',', group = "rights", requires = "reach")]
        allow: Vec<Permission>,
        /// Everything on all apps
        #[arg(long, group = "rights", conflicts_with = "reach")]
        everything: bool,
        /// An app it reaches, by appid or alias; may be repeated
        #[arg(long, value_name = "APP", group = "reach")]
        app: Vec<String>,
        /// Every app, those added later too
        #[arg(long, group = "reach", conflicts_with = "app")]
        all_apps: bool,
        /// A path of WeChat's API that it may call through xinfu, with `/*` at its end for all below;
        /// may be repeated. Without it: all but those that mint or reset credentials. For carried
        /// calls only, which need `--allow proxy`
        #[arg(long, value_name = "PATTERN", conflicts_with = "everything")]
        path: Vec<String>,
        /// An SDK with this key gets the app's own token instead of a pass: for SDKs that call WeChat
        /// past xinfu. Needs `--allow token`
        #[arg(long, conflicts_with = "everything")]
        reveal: bool,
        /// How long it works, such as `90d`, from `1s` to `36500d`; for ever without it
        #[arg(long, value_name = "SPAN")]
        expires_in: Option<String>,
    },
    /// List the keys
    List {
        /// Revoked and expired ones too
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one key
    Show {
        /// Its id or name
        key: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key
    Revoke {
        /// Its id, or its name when only one live key has it
        key: String,
    },
}

/// Runs it.
pub(crate) async fn run(
    command: Command,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::Add { name, allow, everything, app, all_apps, path, reveal, expires_in } => {
            let expires_in = expires_in.as_deref().map(lifetime).transpose()?;
            let open = place.open().await?;
            let rights = if everything {
                Rights::all()
            } else {
                let apps = if all_apps { Apps::All } else { Apps::Only(app.into_iter().collect()) };
                Rights { permissions: allow.into_iter().collect(), apps, paths: path, reveal }
            };
            let expires_at = expires_in.map(|span| open.broker.now() + span);
            let key = open.broker.add_key(&name, rights, expires_at, &open.actor).await?;
            console.print(key.expose())?;
            console
                .say(&format!("this is key `{}` of `{name}`; it is never shown again", key.id))?;
            console.hint(
                "a service sends it as `Authorization: Bearer …`; an SDK has it in the place of its \
                 AppSecret",
            )?;
        }
        Command::List { all, json } => {
            let open = place.open().await?;
            let now = open.broker.now();
            let keys = open.broker.keys().await?;
            let keys = keys.iter().filter(|key| all || key.is_live(now));
            list(&keys.collect::<Vec<_>>(), now, json, console)?;
        }
        Command::Show { key, json } => {
            let open = place.open().await?;
            let keys = open.broker.keys().await?;
            let found = keys.iter().filter(|row| row.id == key || row.name == key);
            let found: Vec<_> = found.collect();
            if found.is_empty() {
                return Err(ManageError::NoSuchKey(key).into());
            }
            list(&found, open.broker.now(), json, console)?;
        }
        Command::Revoke { key } => {
            let open = place.open().await?;
            if let Err(err) = open.broker.revoke_key(&key, &open.actor).await {
                return Err(with_the_ids(&open, &key, err).await?);
            }
            console
                .say(&format!("revoked `{key}`; a running server refuses it within 2 seconds"))?;
        }
    }
    Ok(())
}

/// Why a key was not revoked, with the ids of those that have the name.
async fn with_the_ids(open: &Open, name: &str, err: ManageError) -> Result<Failure, Failure> {
    let (now, keys) = (open.broker.now(), open.broker.keys().await?);
    let named = keys.iter().filter(|row| row.name == name && row.is_live(now));
    let ids: Vec<_> = named.map(|row| format!("`{}`", row.id)).collect();
    let failure = Failure::from(err);
    Ok(if ids.len() > 1 { failure.hint(format!("they are {}", ids.join(", "))) } else { failure })
}

/// How long a key is to work.
fn lifetime(text: &str) -> Result<Duration, Failure> {
    /// A hundred years.
    const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);
    let problem = |what: &str| Failure::usage(format!("`--expires-in` is `{text}`; {what}"));
    let span =
        span::parse(text).ok_or_else(|| problem(&format!("{} is expected", span::EXPECTED)))?;
    if (Duration::from_secs(1)..=LONGEST).contains(&span) {
        Ok(span)
    } else {
        Err(problem("`1s` to `36500d` is allowed"))
    }
}

fn list(
    keys: &[&KeyRow],
    now: Timestamp,
    json: bool,
    console: &mut Console,
) -> Result<(), Failure> {
    if json {
        let keys: Vec<Value> = keys.iter().map(|key| as_json(key, now)).collect();
        return Ok(console.print(&json!(keys).to_string())?);
    }
    if keys.is_empty() {
        console.say("there is no live key")?;
        return Ok(console.hint("`xinfu key add NAME --allow token,report --app APP` makes one")?);
    }
    let mut rows = vec![row(["ID", "NAME", "STATE", "MAY", "ON", "PATHS", "MADE", "ENDS"])];
    for key in keys {
        let rights = rights(key);
        let mut may: Vec<_> = rights.permissions.iter().map(|one| one.as_str()).collect();
        may.extend(rights.reveal.then_some("reveal"));
        rows.push(row([
            &key.id,
            &key.name,
            state(key, now),
            &may.join(","),
            &apps(&rights).unwrap_or_else(|| "all apps".to_owned()),
            &if rights.paths.is_empty() { "-".to_owned() } else { rights.paths.join(",") },
            &status::date(key.created_at),
            &key.expires_at.map_or_else(|| "-".to_owned(), status::date),
        ]));
    }
    Ok(console.table(&rows)?)
}

fn as_json(key: &KeyRow, now: Timestamp) -> Value {
    let rights = rights(key);
    json!({
        "id": key.id,
        "name": key.name,
        "state": state(key, now),
        "allow": rights.permissions.iter().map(|one| one.as_str()).collect::<Vec<_>>(),
        "apps": match &rights.apps {
            Apps::All => json!("all"),
            Apps::Only(apps) => json!(apps),
        },
        "paths": rights.paths,
        "reveal": rights.reveal,
        "created_at": key.created_at.as_secs(),
        "expires_at": key.expires_at.map(Timestamp::as_secs),
        "revoked_at": key.revoked_at.map(Timestamp::as_secs),
    })
}

fn state(key: &KeyRow, now: Timestamp) -> &'static str {
    if key.revoked_at.is_some() {
        "revoked"
    } else if key.is_live(now) {
        "live"
    } else {
        "expired"
    }
}

/// What a key may do; nothing, when that cannot be read.
fn rights(key: &KeyRow) -> Rights {
    serde_json::from_str(&key.rights).unwrap_or_else(|_| Rights {
        permissions: BTreeSet::new(),
        apps: Apps::Only(BTreeSet::new()),
        paths: Vec::new(),
        reveal: false,
    })
}

fn apps(rights: &Rights) -> Option<String> {
    match &rights.apps {
        Apps::All => None,
        Apps::Only(apps) => Some(apps.iter().cloned().collect::<Vec<_>>().join(",")),
    }
}
