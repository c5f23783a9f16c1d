//! Which calls are sent again, and how often: every cause, method and kind of body.

use std::time::Duration;

use server::http::Limits;
use sim::{Fault, FaultKind, Issuer};

use crate::{
    harness::{APP, Answer, Setup, World, pass},
    sdk::Sdk,
};

const GET: &str = "/cgi-bin/user/get";
const POST: &str = "/cgi-bin/user/info/batchget";

/// What happens to a call.
#[derive(Clone, Debug)]
enum Cause {
    /// Somebody outside fetches a token, and ours ends at once; so many calls in a row.
    ForeignRefresh { times: u64 },
    /// Our token ends, and the stable issuer goes on to hand it out.
    Sticky,
    /// WeChat refuses with a code, although the token is good.
    Errcode(i64),
    /// Something else.
    Fault(FaultKind),
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Heard {
    /// WeChat did what was asked.
    Fine,
    /// This errcode, from WeChat.
    Errcode(i64),
    /// That nobody knows.
    Busy,
    /// Whatever WeChat, or a gateway, said.
    Status(u16),
    Nothing,
}

impl Cause {
    fn arrange(&self, world: &World, path: &str) {
        let fault = match self {
            Self::ForeignRefresh { times } => {
                let mint = FaultKind::ForeignMint { issuer: Issuer::Stable, kill: true };
                Fault::new(mint).on(path).times(*times)
            }
            Self::Sticky => Fault::new(FaultKind::EarlyInvalidation { issuer: None, sticky: true })
                .on(path)
                .times(1),
            Self::Errcode(code) => {
                let refuse = FaultKind::Errcode { code: *code, ip: None, message: None };
                Fault::new(refuse).on(path).times(1)
            }
            Self::Fault(kind) => Fault::new(kind.clone()).on(path).times(1),
        };
        world.sim.set_fault(fault);
    }
}

fn heard(answer: &Answer) -> Heard {
    if answer.status != 200 {
        return Heard::Status(answer.status);
    }
    if answer.body.is_empty() {
        return Heard::Nothing;
    }
    let body = answer.json();
    match body["errcode"].as_i64() {
        None | Some(0) => Heard::Fine,
        Some(-1) if body["errmsg"].as_str().unwrap().contains("xinfu") => Heard::Busy,
        Some(code) => Heard::Errcode(code),
    }
}

/// A world that gives up on WeChat sooner than clients give up.
async fn world() -> World {
    let limits = Limits { kept_body: 4096, ..Limits::default() };
    World::with(Setup { limits, ..Setup::default() }).await
}

#[tokio::test(start_paused = true)]
async fn every_cause_method_and_body() {
    use Cause::{Errcode, ForeignRefresh, Sticky};
    use Heard::{Busy, Fine, Nothing, Status};
    // What the simulator sees of a call whose body is kept and what is heard then; the same for one
    // whose body is too large to be kept.
    let code = |code| Heard::Errcode(code);
    let rows = [
        (ForeignRefresh { times: 1 }, (2, Fine), (1, code(40001))),
        (ForeignRefresh { times: 2 }, (3, Fine), (1, code(40001))),
        (ForeignRefresh { times: 9 }, (3, code(40001)), (1, code(40001))),
        (Sticky, (2, Fine), (1, code(40001))),
        (Errcode(40001), (1, code(40001)), (1, code(40001))),
        (Errcode(40014), (1, code(40014)), (1, code(40014))),
        (Errcode(42001), (1, code(42001)), (1, code(42001))),
        (Errcode(-1), (1, code(-1)), (1, code(-1))),
        (Errcode(45009), (1, code(45009)), (1, code(45009))),
        (Errcode(45011), (1, code(45011)), (1, code(45011))),
        (Errcode(40164), (1, code(40164)), (1, code(40164))),
        (Errcode(48001), (1, code(48001)), (1, code(48001))),
        (
            Cause::Fault(FaultKind::BadGateway { processed: false }),
            (1, Status(502)),
            (1, Status(502)),
        ),
        (
            Cause::Fault(FaultKind::BadGateway { processed: true }),
            (1, Status(502)),
            (1, Status(502)),
        ),
        (Cause::Fault(FaultKind::ResetBefore {}), (1, Busy), (1, Busy)),
        (Cause::Fault(FaultKind::ResetAfter {}), (1, Busy), (1, Busy)),
        (Cause::Fault(FaultKind::TruncatedBody {}), (1, Busy), (1, Busy)),
        (Cause::Fault(FaultKind::EmptyBody {}), (1, Nothing), (1, Nothing)),
        (Cause::Fault(FaultKind::LatencyAfter { millis: 40_000 }), (1, Busy), (1, Busy)),
    ];
    for (cause, kept, passing) in rows {
        for (method, path, large, (seen, expected)) in
            [("GET", GET, false, kept), ("POST", POST, false, kept), ("POST", POST, true, passing)]
        {
            let world = world().await;
            let sdk = Sdk::of(&world).await;
            let before = world.calls(path);
            cause.arrange(&world, path);
            let filling = if large { " ".repeat(8192) } else { String::new() };
            let body =
                format!(r#"{{"user_list":[{{"openid":"{}"}}]{filling}}}"#, crate::harness::OPENID);
            let body = (method == "POST").then_some(body.as_str());
            let answer = sdk.call(method, path, "", body).await;
            let about = format!("{cause:?} {method} large={large}: {answer:?}");
            assert_eq!(world.calls(path) - before, seen, "{about}");
            assert_eq!(heard(&answer), expected, "{about}");
            // One 40001 is the whole price of a foreign refresh.
            world.sim.clear_faults();
            let next = sdk.call(method, path, "", body).await;
            assert_eq!(heard(&next), Fine, "after {about}: {next:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_refresh_costs_a_call_nothing_but_a_replay() {
    let world = world().await;
    let sdk = Sdk::of(&world).await;
    sdk.call("GET", GET, "", None).await;
    for round in 0..20 {
        world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
        let answer = sdk.call("GET", GET, "", None).await;
        assert_eq!(heard(&answer), Heard::Fine, "round {round}: {answer:?}");
    }
    // The pass has stayed the same all along.
    assert_eq!(world.calls(GET), 41);
}

#[tokio::test(start_paused = true)]
async fn many_calls_that_fail_together_make_one_check() {
    let world = world().await;
    let sdk = Sdk::of(&world).await;
    let before = world.calls("/cgi-bin/stable_token");
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let calls = (0..50).map(|_| sdk.call("GET", GET, "", None));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(heard(&answer), Heard::Fine, "{answer:?}");
    }
    assert_eq!(world.calls("/cgi-bin/stable_token") - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_refresh_right_after_an_unfounded_refusal_costs_no_more() {
    let world = world().await;
    let sdk = Sdk::of(&world).await;
    Cause::Errcode(40001).arrange(&world, GET);
    assert_eq!(heard(&sdk.call("GET", GET, "", None).await), Heard::Errcode(40001));
    pass(2).await;
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let answer = sdk.call("GET", GET, "", None).await;
    assert_eq!(heard(&answer), Heard::Fine, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn what_one_client_suspects_keeps_no_refusal_of_another_from_being_looked_at() {
    let world = world().await;
    let sdk = Sdk::of(&world).await;
    let key = &sdk.key;
    let force = format!(
        r#"{{"grant_type":"client_credential","appid":"{APP}","secret":"{key}","force_refresh":true}}"#
    );
    for _ in 0..6 {
        let answer = world.post("/cgi-bin/stable_token", &force).await;
        assert!(answer.json()["access_token"].is_string(), "{answer:?}");
        pass(11).await;
    }
    world.post("/cgi-bin/stable_token", &force).await;
    pass(2).await;
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let answer = sdk.call("GET", GET, "", None).await;
    assert_eq!(heard(&answer), Heard::Fine, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_always_refuses_has_the_token_checked_ever_more_rarely() {
    const PROBE: &str = "/cgi-bin/get_api_domain_ip";
    let world = world().await;
    let sdk = Sdk::of(&world).await;
    let refuse = FaultKind::Errcode { code: 40001, ip: None, message: None };
    world.sim.set_fault(Fault::new(refuse).on(GET));
    for _ in 0..120 {
        assert_eq!(heard(&sdk.call("GET", GET, "", None).await), Heard::Errcode(40001));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // After 0, 1, 3, 7, 15 seconds, and then every ten: within a minute.
    let probes = world.calls(PROBE);
    assert!((8..=10).contains(&probes), "{probes}");
}
