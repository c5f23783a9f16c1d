//! `xinfu demo`: a simulated WeChat, a server, two apps and a key, on loopback and in a throw-away
//! folder.
//!
//! Server and simulator share one clock: moving it at the simulator's control port moves both, in
//! small steps that wait for the refreshes that fall due. The simulator, the store and the server
//! are those of `xinfu sim` and `xinfu serve`; only the clock differs.

mod client;
pub(crate) mod service;
mod steps;
mod story;
mod world;

use std::process::ExitCode;

use crate::{
    cli::{BOLD, CYAN, Console, DIM, Failure, stop_signals},
    config::{Environment, LogFormat},
    telemetry,
};

use world::{Ports, World};

/// How to show it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Walk through what it does, step by step, and end with exit code 0 or 1
    #[arg(long)]
    once: bool,
    /// Print one line of JSON when ready: addresses, apps and key
    #[arg(long, conflicts_with = "once")]
    json: bool,
    /// Number the listeners N, N+1, …; 0 takes free ports
    #[arg(long, value_name = "N")]
    port_base: Option<u16>,
}

/// Runs it.
pub(crate) async fn run(
    arguments: Arguments,
    environment: &Environment,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let ports = match arguments.port_base {
        Some(base) => Ports::from(base)?,
        // A walk needs no address that somebody knows beforehand.
        None if arguments.once => Ports::FREE,
        None => Ports::DEFAULT,
    };
    let level = if arguments.once { "off" } else { "warn,broker=info" };
    telemetry::start(LogFormat::Human, level, environment)?;
    let signals = stop_signals()?;
    let world = World::start(ports).await?;

    if arguments.once {
        let walked = tokio::select! {
            walked = steps::walk(&world, console) => walked,
            () = signals => Err(Failure::new("interrupted")),
        };
        world.stop().await;
        return Ok(if walked? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    world.add_apps().await?;
    if arguments.json {
        console.print(&world.as_json().to_string())?;
    } else {
        introduce(&world, console)?;
    }
    signals.await;
    world.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Prints addresses, key and lines to paste.
fn introduce(world: &World, console: &mut Console) -> Result<(), Failure> {
    let (api, sim, control, key) = (&world.api, &world.sim_api, &world.control, world.key.expose());
    let [shop, news] = &world.apps;
    let (follower, reader, stranger) = (world::FOLLOWER, world::READER, world::STRANGER);
    console.print(&format!(
        "{BOLD}xinfu keeps the global tokens of two apps fresh, against a simulated WeChat.{BOLD:#}\n\n  \
         xinfu      {api}\n  \
         WeChat     {sim} (simulated, seed {})\n  \
         its clock  {control}\n  \
         key        {key} (may do everything on all apps)\n  \
         apps       {} = {} (stable_token)\n             {} = {} (cgi-bin/token)\n\n\
         {DIM}Lines to paste into another terminal:{DIM:#}",
        world.sim.seed(),
        shop.alias,
        shop.appid,
        news.alias,
        news.appid,
    ))?;
    let auth = "-H \"$AUTH\"";
    let lines = [
        (
            "for the lines below",
            format!("API={api} SIM={sim} CONTROL={control} AUTH='Authorization: Bearer {key}'"),
        ),
        ("read a token", format!("curl -sw '\\n' {auth} $API/v1/apps/shop/token")),
        ("read a follower", format!("curl -sw '\\n' {auth} $API/v1/apps/shop/users/{follower}")),
        (
            "let a user log in who does not follow; the simulator gives their code",
            format!(
                "CODE=$(curl -s -d '{{\"openid\":\"{stranger}\",\"scope\":\"snsapi_userinfo\"}}' \
                 $CONTROL/sim/apps/{}/codes | sed 's/.*code\":\"//; s/\".*//')\n  \
                 curl -sw '\\n' {auth} -H 'Content-Type: application/json' \
                 -d \"{{\\\"code\\\":\\\"$CODE\\\",\\\"binding\\\":\\\"from-the-session\\\"}}\" \
                 $API/v1/apps/shop/oauth/exchange",
                shop.appid
            ),
        ),
        (
            "read their profile",
            format!("curl -sw '\\n' {auth} $API/v1/apps/shop/grants/{stranger}/profile"),
        ),
        (
            "let an hour pass; after the second one, the tokens are others",
            "curl -sw '\\n' -d '{\"seconds\":3600}' $CONTROL/sim/clock/advance".to_owned(),
        ),
        (
            "keep a token, as a service would, and have somebody outside kill it",
            format!(
                "T=$(curl -s {auth} $API/v1/apps/news/token | sed 's/.*access_token\":\"//; s/\".*//')\n  \
                 curl -sw '\\n' -d '{{\"issuer\":\"classic\",\"kill\":true}}' \
                 $CONTROL/sim/apps/{}/foreign-refresh",
                news.appid
            ),
        ),
        (
            "WeChat refuses it; report it, and get the new one",
            format!(
                "curl -sw '\\n' \"$SIM/cgi-bin/user/info?access_token=$T&openid={reader}\"\n  \
                 curl -sw '\\n' {auth} -H 'Content-Type: application/json' \
                 -d \"{{\\\"access_token\\\":\\\"$T\\\",\\\"errcode\\\":40001}}\" \
                 $API/v1/apps/news/token/report"
            ),
        ),
        (
            "take WeChat down, and bring it back",
            "curl -sw '\\n' -d '{\"kind\":\"bad_gateway\"}' $CONTROL/sim/faults\n  \
             curl -sw '\\n' -X DELETE $CONTROL/sim/faults"
                .to_owned(),
        ),
        (
            "what an SDK does: a pass for the client key, and a call with it",
            format!(
                "P=$(curl -s \"$API/cgi-bin/token?grant_type=client_credential&appid={appid}&secret=${{AUTH##* }}\" \
                 | sed 's/.*access_token\":\"//; s/\".*//')\n  \
                 curl -sw '\\n' \"$API/cgi-bin/user/info?access_token=$P&openid={follower}\"",
                appid = shop.appid
            ),
        ),
        (
            "the same in Python (pip install wechatpy cryptography)",
            format!(
                "python3 -c \"from wechatpy.client import WeChatClient as W; W.API_BASE_URL='$API/cgi-bin/'; \
                 W.fetch_access_token=lambda s: s._fetch_access_token('$API/cgi-bin/token', \
                 dict(grant_type='client_credential', appid=s.appid, secret=s.secret)); \
                 print(W('{}', '${{AUTH##* }}').user.get('{follower}'))\"",
                shop.appid
            ),
        ),
        (
            "and in Node (npm install co-wechat-api)",
            format!(
                "node -e \"const A=require('co-wechat-api'); const a=new A('{}', '${{AUTH##* }}'); \
                 a.prefix='$API/cgi-bin/'; a.getUser('{follower}').then(console.log)\"",
                shop.appid
            ),
        ),
        ("see what WeChat was asked", "curl -sw '\\n' $CONTROL/sim/calls".to_owned()),
    ];
    for (what, line) in lines {
        console.print(&format!("\n  {DIM}# {what}{DIM:#}\n  {CYAN}{line}{CYAN:#}"))?;
    }
    console.print(&format!("\n{DIM}Ctrl-C ends it, and nothing is left behind. `xinfu demo --once` walks through all of this.{DIM:#}"))?;
    Ok(())
}
