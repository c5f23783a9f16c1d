//! `xinfu user`: what WeChat knows about a user, by the global token.

use serde_json::json;
use wechat::{Follower, Lang, OpenId};

use super::{Console, Failure, open::Place};
use crate::http::parse_openid;

/// What to read.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the record of a user as JSON
    Get {
        /// The appid or alias
        app: String,
        /// The openid of the user at this app
        #[arg(value_parser = parse_openid)]
        openid: OpenId,
        /// The language of places: `zh_CN`, `zh_TW` or `en`
        #[arg(long)]
        lang: Option<Lang>,
    },
}

/// Runs it.
pub(crate) async fn run(
    command: Command,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let Command::Get { app, openid, lang } = command;
    let open = place.open().await?;
    let entry = open.app(&app)?;
    let found = open.broker.user(&entry, &openid, lang).await;
    open.finish().await;
    let user = found?;
    console.print(&shown(&user).to_string())?;
    if !user.subscribe {
        console.say("this user does not follow the app, so that WeChat tells no more")?;
    }
    Ok(())
}

fn shown(user: &Follower) -> serde_json::Value {
    json!({
        "openid": user.openid.as_str(),
        "unionid": user.unionid.as_ref().map(wechat::UnionId::as_str),
        "subscribe": user.subscribe,
        "subscribe_time": user.subscribe_time,
        "subscribe_scene": user.subscribe_scene,
        "language": user.language,
        "remark": user.remark,
        "groupid": user.groupid,
        "tagid_list": user.tagid_list,
        "qr_scene": user.qr_scene,
        "qr_scene_str": user.qr_scene_str,
    })
}
