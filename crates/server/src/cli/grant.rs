//! `xinfu grant`: what is held of users who authorised.

use broker::{GrantView, UserGrants};
use serde_json::{Value, json};
use wechat::{OpenId, UnionId};

use super::{Console, Failure, app::row, open::Place, status};
use crate::http::parse_held_openid;

/// What to do with grants.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the users of an app of whom grants are held, in the order of their openids
    List {
        /// The appid or alias
        app: String,
        /// Only those after this openid: the last one of the part before
        #[arg(long, value_name = "OPENID", value_parser = parse_held_openid)]
        after: Option<OpenId>,
        /// How many users
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is held of one user; tokens are never shown
    Show {
        /// The appid or alias
        app: String,
        /// The openid of the user at this app
        #[arg(value_parser = parse_held_openid)]
        openid: OpenId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a user: grants, profile, unionid and sessions
    Remove {
        /// The appid or alias
        app: String,
        /// The openid of the user at this app
        #[arg(value_parser = parse_held_openid)]
        openid: OpenId,
    },
}

/// Runs it.
pub(crate) async fn run(
    command: Command,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::List { app, after, limit, json } => {
            let open = place.open().await?;
            let entry = open.app(&app)?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let users = open.broker.list_grants(&entry, after.as_ref(), limit).await?;
            list(&users, json, console)?;
            if let Some(last) = users.last().filter(|_| users.len() == limit) {
                console
                    .hint(&format!("`--after {}` lists those that follow", last.openid.as_str()))?;
            }
        }
        Command::Show { app, openid, json } => {
            let open = place.open().await?;
            let entry = open.app(&app)?;
            let Some(user) = open.broker.grants(&entry, &openid).await? else {
                return Err(nothing_held(&openid, &app));
            };
            if json {
                console.print(&as_json(&user).to_string())?;
            } else {
                list(&[user], false, console)?;
            }
        }
        Command::Remove { app, openid } => {
            let open = place.open().await?;
            let entry = open.app(&app)?;
            if !open.broker.forget_user(&entry, &openid, &open.actor).await? {
                return Err(nothing_held(&openid, &app));
            }
            console.say(&format!("forgot `{}`", openid.as_str()))?;
            console.hint("at WeChat the authorisation goes on until the user ends it")?;
        }
    }
    Ok(())
}

fn nothing_held(openid: &OpenId, app: &str) -> Failure {
    Failure::new(format!("nothing is held of a user `{}` in `{app}`", openid.as_str()))
        .hint(format!("`xinfu grant list {app}` lists those of whom something is"))
}

fn list(users: &[UserGrants], json: bool, console: &mut Console) -> Result<(), Failure> {
    if json {
        let users: Vec<Value> = users.iter().map(as_json).collect();
        return Ok(console.print(&json!(users).to_string())?);
    }
    if users.is_empty() {
        return Ok(console.say("no grants are held")?);
    }
    let mut rows =
        vec![row(["OPENID", "UNIONID", "SCOPE", "STATE", "AUTHORISED", "RENEWABLE UNTIL"])];
    for user in users {
        let unionid = user.unionid.as_ref().map_or("-", UnionId::as_str);
        for grant in &user.grants {
            rows.push(row([
                user.openid.as_str(),
                unionid,
                grant.scope.as_str(),
                &state(grant),
                &status::date(grant.authorised_at),
                &status::date(grant.renewable_until),
            ]));
        }
    }
    Ok(console.table(&rows)?)
}

fn state(grant: &GrantView) -> String {
    match &grant.ended {
        Some(end) => format!("ended ({})", end.errcode),
        None if grant.is_live => "live".to_owned(),
        None => "ended".to_owned(),
    }
}

fn as_json(user: &UserGrants) -> Value {
    let grant = |grant: &GrantView| {
        json!({
            "scope": grant.scope.as_str(),
            "state": if grant.is_live { "live" } else { "ended" },
            "authorised_at": grant.authorised_at.as_secs(),
            "token_expires_at": grant.token_expires_at.as_secs(),
            "renewable_until": grant.renewable_until.as_secs(),
            "ended": grant.ended.as_ref().map(|end| json!({
                "at": end.at.as_secs(),
                "errcode": end.errcode,
            })),
        })
    };
    json!({
        "openid": user.openid.as_str(),
        "unionid": user.unionid.as_ref().map(UnionId::as_str),
        "grants": user.grants.iter().map(grant).collect::<Vec<_>>(),
    })
}
