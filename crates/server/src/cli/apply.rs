//! `xinfu app apply`: the apps as a file declares them.

use std::path::{Path, PathBuf};

use broker::{Applied, ApplyError, NewApp, app::UnknownWord};
use serde::Deserialize;
use wechat::AppSecret;

use super::{Console, Failure, open::Open, secret::read_file};
use crate::config::Complaint;

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    /// Not the same as none: a file that was cut off declares nothing.
    apps: Option<Vec<DeclaredApp>>,
}

/// One app of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredApp {
    appid: String,
    alias: Option<String>,
    #[serde(default = "official")]
    kind: String,
    #[serde(default = "stable")]
    issuer: String,
    /// Relative to the folder of the file.
    secret_file: PathBuf,
}

/// Makes the registered apps those of a file, and says what that changed.
pub(crate) async fn run(
    open: &Open,
    file: &Path,
    prune: bool,
    console: &mut Console,
) -> Result<(), Failure> {
    let wanted = read(file, console)?;
    let count = wanted.len();
    let applied = match open.broker.apply_apps(wanted, prune, &open.actor).await {
        Ok(applied) => applied,
        Err(ApplyError { at, error, done }) => {
            tell(&done, console)?;
            let at = at.unwrap_or_default();
            let failure = Failure::from(error);
            let message = format!("`{}`: {at}{}", file.display(), failure.message);
            let failure = Failure { message, ..failure };
            return Err(if done == Applied::default() {
                failure.hint("nothing was changed")
            } else {
                failure.hint("what was done is listed above; the same command does the rest")
            });
        }
    };
    tell(&applied, console)?;
    let Applied { added, changed, unchanged, removed } = &applied;
    console.say(&format!(
        "{} added, {} changed, {} removed, {} as declared already",
        added.len(),
        changed.len(),
        removed.len(),
        unchanged.len()
    ))?;
    let others = open.apps().len().saturating_sub(count);
    if others > 0 {
        console.hint(&format!(
            "{others} registered apps are not in the file; `--prune` removes such apps"
        ))?;
    }
    Ok(())
}

/// Prints a line for each app that is not as it was.
fn tell(applied: &Applied, console: &mut Console) -> Result<(), Failure> {
    let Applied { added, changed, unchanged: _, removed } = applied;
    for (what, ids) in [("added", added), ("changed", changed), ("removed", removed)] {
        for id in ids {
            console.print(&format!("{what} {id}"))?;
        }
    }
    Ok(())
}

fn read(file: &Path, console: &mut Console) -> Result<Vec<NewApp>, Failure> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|err| Failure::usage(format!("cannot read `{shown}`: {err}")))?;
    // The text itself stays out of the message: somebody may have written a secret there.
    let declared: Declared = toml::from_str(&text).map_err(|err| {
        let Complaint { line, key, words } = Complaint::of(&text, &err);
        let line = line.unwrap_or(1);
        let key = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
        Failure::usage(format!("`{shown}` line {line}: {key}{words}")).hint(
            "each `[[apps]]` has `appid`, `secret_file` and optionally `alias`, `kind`, `issuer`",
        )
    })?;
    let declared = declared.apps.ok_or_else(|| {
        Failure::usage(format!("`{shown}` says nothing about `apps`; nothing was changed"))
            .hint("`[[apps]]` declares an app; `apps = []` declares that there is none")
    })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut apps = Vec::with_capacity(declared.len());
    for (place, app) in declared.into_iter().enumerate() {
        let problem = |what: String| {
            Failure::usage(format!("`{shown}`: apps[{place}] {}: {what}", app.appid))
                .hint("nothing was changed")
        };
        let secret = read_file(&folder.join(&app.secret_file), console)
            .map_err(|err| problem(format!("`secret_file`: {}", err.message)))?;
        apps.push(NewApp {
            id: app.appid.parse().map_err(|err| problem(format!("`appid`: {err}")))?,
            kind: app.kind.parse().map_err(|err| problem(word("kind", &err)))?,
            issuer: app.issuer.parse().map_err(|err| problem(word("issuer", &err)))?,
            secret: AppSecret::new(secret.trim()),
            alias: app.alias,
        });
    }
    Ok(apps)
}

/// What a field may be; not what it is, like all values here.
fn word(field: &str, err: &UnknownWord) -> String {
    format!("`{field}`: one of {} is expected", err.choices)
}

fn official() -> String {
    "official".to_owned()
}

fn stable() -> String {
    "stable".to_owned()
}
