//! `xinfu app`: the apps in the store.

use std::path::PathBuf;

use broker::{
    AppChange, AppEntry, Broker, NewApp,
    app::{AppKind, Issuer},
    ledger::beijing_day,
};
use serde_json::json;
use wechat::AppId;

use super::{
    Console, Failure, apply,
    console::BOLD,
    open::{Open, Place},
    secret::SecretFrom,
    status,
};

/// What to do with apps.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Register an app; its AppSecret is asked for, or read from a file
    Add {
        /// The appid, from WeChat's console
        appid: AppId,
        /// Another name for it
        #[arg(long)]
        alias: Option<String>,
        /// What it is: official, mini-program, website or test
        #[arg(long, default_value = "official")]
        kind: AppKind,
        /// Who mints its global token: stable or classic
        #[arg(long, default_value = "stable")]
        issuer: Issuer,
        #[command(flatten)]
        secret: SecretFrom,
    },
    /// List the apps and how their tokens are doing
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one app: settings, credentials and what was spent of its quotas
    Show {
        /// The appid or alias
        app: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace the AppSecret of an app, which ends a stop
    SetSecret {
        /// The appid or alias
        app: String,
        #[command(flatten)]
        secret: SecretFrom,
    },
    /// Change an app
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The appid or alias
        app: String,
        /// Another name for it
        #[arg(long, group = "what")]
        alias: Option<String>,
        /// Take its other name away
        #[arg(long, group = "what", conflicts_with = "alias")]
        no_alias: bool,
        /// What it is: official, mini-program, website or test
        #[arg(long, group = "what")]
        kind: Option<AppKind>,
        /// Who mints its global token: stable or classic
        #[arg(long, group = "what")]
        issuer: Option<Issuer>,
    },
    /// Remove an app with its credentials
    Remove {
        /// The appid or alias
        app: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make the apps those of a TOML file; doing it twice changes nothing
    Apply {
        /// The file: `[[apps]]` with `appid`, `secret_file` and what `app add` takes, or `apps = []`
        file: PathBuf,
        /// Remove apps that the file does not name
        #[arg(long)]
        prune: bool,
    },
}

/// Runs it.
pub(crate) async fn run(
    command: Command,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::Add { appid, alias, kind, issuer, secret } => {
            let open = place.open().await?;
            refuse_twice(&open, &appid)?;
            let secret = secret.read(console)?;
            let new = NewApp { id: appid.clone(), alias, kind, issuer, secret };
            if let Err(err) = open.broker.add_app(new, &open.actor).await {
                // Somebody may have added it while the secret was being typed.
                refuse_twice(&open, &appid)?;
                return Err(err.into());
            }
            console.say(&format!("registered `{appid}`; a running server takes it over"))?;
            console.hint(&format!("`xinfu token status {appid}` shows how it is doing"))?;
        }
        Command::List { json } => list(&place.open().await?, json, console)?,
        Command::Show { app, json } => show(&place.open().await?, &app, json, console).await?,
        Command::SetSecret { app, secret } => {
            let open = place.open().await?;
            open.app(&app)?;
            let secret = Some(secret.read(console)?);
            let change = AppChange { secret, ..AppChange::default() };
            open.broker.change_app(&app, change, &open.actor).await?;
            console.say(&format!("replaced the AppSecret of `{app}`"))?;
            console.hint(&format!("`xinfu token refresh {app}` tries it now"))?;
        }
        Command::Set { app, alias, no_alias, kind, issuer } => {
            let open = place.open().await?;
            let alias = if no_alias { Some(None) } else { alias.map(Some) };
            let change = AppChange { alias, kind, issuer, secret: None };
            open.broker.change_app(&app, change, &open.actor).await?;
            console.say(&format!("changed `{app}`"))?;
        }
        Command::Remove { app, yes } => {
            let open = place.open().await?;
            let id = open.app(&app)?.app().id.clone();
            let question = format!("Remove `{id}`? Services that use it get no token any more.");
            if !yes && !console.confirm(&question)? {
                return Err(not_confirmed());
            }
            open.broker.remove_app(id.as_str(), &open.actor).await?;
            console.say(&format!("removed `{id}`"))?;
        }
        Command::Apply { file, prune } => {
            apply::run(&place.open().await?, &file, prune, console).await?;
        }
    }
    Ok(())
}

/// Refuses an app that is there already. An alias that is taken is another matter.
fn refuse_twice(open: &Open, appid: &AppId) -> Result<(), Failure> {
    let found = open.broker.app(appid.as_str());
    if found.is_none_or(|entry| entry.app().id != *appid) {
        return Ok(());
    }
    Err(Failure::new(format!("app `{appid}` is registered already"))
        .hint("`xinfu app set` changes it, `xinfu app set-secret` replaces its AppSecret"))
}

/// A question that was answered with no, or could not be asked.
pub(crate) fn not_confirmed() -> Failure {
    Failure::new("nothing was changed").hint("`--yes` answers the question beforehand")
}

fn list(open: &Open, json: bool, console: &mut Console) -> Result<(), Failure> {
    let apps = open.apps();
    if json {
        let apps: Vec<_> = apps.iter().map(|entry| as_json(&open.broker, entry)).collect();
        return Ok(console.print(&json!(apps).to_string())?);
    }
    if apps.is_empty() {
        console.say("no app is registered")?;
        return Ok(console.hint("`xinfu app add APPID` registers one")?);
    }
    let mut rows = vec![row(["APPID", "ALIAS", "KIND", "ISSUER", "TOKEN"])];
    for entry in &apps {
        let app = entry.app();
        rows.push(row([
            app.id.as_str(),
            app.alias.as_deref().unwrap_or("-"),
            app.kind.as_str(),
            app.issuer.as_str(),
            &status::token_in_words(&open.broker, entry),
        ]));
    }
    Ok(console.table(&rows)?)
}

async fn show(open: &Open, name: &str, json: bool, console: &mut Console) -> Result<(), Failure> {
    let entry = open.app(name)?;
    let app = entry.app();
    let today = beijing_day(open.broker.now());
    let ledger = open.broker.ledger(&app.id).await?;
    if json {
        let mut shown = as_json(&open.broker, &entry);
        let spent = ledger
            .iter()
            .map(|row| json!({"api": row.api, "days_ago": today - row.day, "used": row.used}));
        shown["spent"] = spent.collect();
        return Ok(console.print(&shown.to_string())?);
    }
    let alias = app.alias.as_deref().unwrap_or("-");
    console.print(&format!("{BOLD}{}{BOLD:#}", app.id))?;
    let mut lines = vec![
        ("alias", alias.to_owned()),
        ("kind", app.kind.as_str().to_owned()),
        ("issuer", app.issuer.as_str().to_owned()),
        ("secret", "set, not shown".to_owned()),
    ];
    for credential in status::of_app(&open.broker, &entry) {
        let words = status::in_words(&credential, open.broker.now());
        lines.push((credential.kind.as_str(), words));
    }
    for row in ledger.iter().filter(|row| row.day == today) {
        lines.push(("today", format!("{} calls of {}", row.used, row.api)));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, words) in &lines {
        console.print(&format!("  {name:<width$}  {words}"))?;
    }
    Ok(())
}

/// An app and its credentials as JSON.
pub(crate) fn as_json(broker: &Broker, entry: &AppEntry) -> serde_json::Value {
    let app = entry.app();
    json!({
        "appid": app.id.as_str(),
        "alias": app.alias,
        "kind": app.kind.as_str(),
        "issuer": app.issuer.as_str(),
        "credentials": status::as_json(broker, entry),
    })
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
