//! A day of simulated time with a thousand apps, every fault on at 5 %, services that read and
//! report, users who log in, come back twice and take back what they authorised, and somebody
//! outside who mints now and then. What must hold is checked at each step.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use broker::{
    AppEntry, Broker, ExchangeError, ProfileError, ProfileQuery, Proof, TokenView, app::Issuer,
    key::ClientKey,
};
use sim::{BadNumber, Dirt, Fault, FaultKind, Revocation, Scope, TokenState, UserSpec};
use wechat::{AuthCode, OpenId, TicketKind};

use crate::harness::{Backend, EXCHANGE, World, add_key, secs};

const APPS: usize = 1_000;
const STEP: u64 = 300;

/// A small generator, so that a seed replays a day.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn faults() -> Vec<FaultKind> {
    let errcode = |code| FaultKind::Errcode { code, ip: None, message: None };
    vec![
        errcode(-1),
        errcode(40164),
        errcode(45009),
        errcode(45011),
        FaultKind::LatencyBefore { millis: 900 },
        FaultKind::LatencyAfter { millis: 900 },
        FaultKind::ResetBefore {},
        FaultKind::ResetAfter {},
        FaultKind::BadGateway { processed: false },
        FaultKind::BadGateway { processed: true },
        FaultKind::TruncatedBody {},
        FaultKind::EmptyBody {},
        FaultKind::ExpiresIn { r#as: BadNumber::Missing },
        FaultKind::ExpiresIn { r#as: BadNumber::Zero },
        FaultKind::ExpiresIn { r#as: BadNumber::Negative },
        FaultKind::ExpiresIn { r#as: BadNumber::Huge },
        FaultKind::ExpiresIn { r#as: BadNumber::String },
        FaultKind::DirtyStrings { r#as: Dirt::Both },
        FaultKind::ContentType { value: "text/html".to_owned() },
        FaultKind::OldSuffix { suffix: sim::Suffix::Hints },
        FaultKind::EarlyInvalidation { issuer: None, sticky: false },
        FaultKind::EarlyInvalidation { issuer: None, sticky: true },
        FaultKind::ForeignMint { issuer: sim::Issuer::Classic, kill: true },
        FaultKind::ForeignMint { issuer: sim::Issuer::Stable, kill: false },
        FaultKind::OldTokenSurvives { seconds: 600 },
        FaultKind::GrantRevoked {},
        FaultKind::PasswordChanged {},
        FaultKind::WebTokenEnds {},
        FaultKind::ClockSkew { seconds: 400 },
    ]
}

/// Reads on in the simulator's log of calls.
#[derive(Default)]
struct Watch {
    seen: u64,
    /// When the last fetch of an app's token had its answer.
    answered: HashMap<String, i64>,
    forced: HashMap<String, u32>,
    /// Mints of an app in a row whose answers got lost.
    lost: HashMap<String, u32>,
    /// When something last ended tokens of an app without our knowing.
    ended: HashMap<String, i64>,
    /// The codes that were exchanged.
    codes: HashSet<String>,
}

impl Watch {
    /// Checks the calls since the last look: never two fetches of one token at once, never a call
    /// beyond a quota, and never a code for a second time.
    fn look(&mut self, world: &World) {
        const OUTSIDE: [&str; 2] = ["early_invalidation", "foreign_mint"];
        const LOST: [&str; 4] = ["reset_after", "truncated_body", "empty_body", "bad_gateway"];
        for call in world.sim.calls_after(self.seen, usize::MAX).log {
            self.seen = call.seq;
            let had = |names: &[&str]| call.faults.iter().any(|fault| names.contains(fault));
            let refused = matches!(call.errcode, Some(45009 | 45011));
            assert!(!refused || had(&["errcode"]), "beyond a quota: {call:?}");
            if call.path == EXCHANGE {
                let fresh = call.code.clone().is_some_and(|code| self.codes.insert(code));
                assert!(fresh, "a code for a second time: {call:?}");
            }
            let lost = self.lost.entry(call.appid.clone()).or_default();
            if call.path == "/cgi-bin/token" && call.errcode == Some(0) {
                // One mint leaves the token before it WeChat's overlap, two do not.
                *lost = if had(&LOST) { *lost + 1 } else { 0 };
            }
            if call.path == "(foreign)" || had(&OUTSIDE) || *lost >= 2 {
                self.ended.insert(call.appid.clone(), call.decided_at);
            }
            if matches!(call.path.as_str(), "/cgi-bin/token" | "/cgi-bin/stable_token") {
                let end = call.answered_at.unwrap_or(call.decided_at);
                let before = self.answered.insert(call.appid.clone(), end);
                assert!(before.is_none_or(|it| it <= call.sent_at), "two at once: {call:?}");
                *self.forced.entry(call.appid).or_default() += u32::from(call.force);
            }
        }
    }

    /// Whether a token that was handed out may have ended without our knowing.
    fn may_have_ended(&self, appid: &str, view: &TokenView) -> bool {
        const LIFE: Duration = Duration::from_secs(7200);
        let minted_by = (view.expires_at - LIFE).as_millis();
        self.ended.get(appid).is_some_and(|at| *at >= minted_by)
    }
}

/// What came of the logins of the day.
#[derive(Debug, Default)]
struct Logins {
    codes: u64,
    identities: u64,
    profiles: u64,
    reauthorize: u64,
    failed: u64,
}

/// One of an app's ten users logs in, often with a callback that comes twice, and the service reads
/// the profile. Now and then a user takes back what was authorised.
async fn log_in(
    world: &World,
    broker: &Broker,
    (appid, entry): (&str, &Arc<AppEntry>),
    key: &ClientKey,
    dice: &mut Dice,
    logins: &mut Logins,
) {
    let openid = format!("o{appid}-{}", dice.roll(10));
    world.sim.add_user(UserSpec::new(appid, &openid).with_nickname("n\u{8} 微信 👋")).unwrap();
    if dice.roll(10) == 0 {
        world.sim.revoke_grant(appid, &openid, Revocation::Revoked).unwrap();
    }
    let scope = if dice.roll(2) == 0 { Scope::UserInfo } else { Scope::Base };
    let code = AuthCode::new(world.sim.issue_code(appid, &openid, scope, false).unwrap());
    let binding = format!("cookie {}", dice.roll(u64::MAX));
    let exchange =
        async |binding| broker.exchange(entry, key, &code, Proof::Binding(binding), None).await;
    logins.codes += 1;
    let twice = dice.roll(3) == 0;
    let (first, second) = tokio::join!(exchange(&binding), async {
        if twice { Some(exchange(&binding).await) } else { None }
    });
    assert!(second.is_none_or(|second| second == first), "a callback that came twice");
    assert_eq!(exchange("another").await, Err(ExchangeError::CodeUsed));
    if let Ok(identity) = first {
        assert_eq!(identity.openid.as_str(), openid);
        logins.identities += 1;
    }
    let query = ProfileQuery { fresh: dice.roll(2) == 0, ..ProfileQuery::default() };
    match broker.profile(entry, key, &OpenId::new(openid.as_str()), &query).await {
        Ok(profile) => {
            assert_eq!(profile.user.openid.as_str(), openid);
            logins.profiles += 1;
        }
        Err(ProfileError::Reauthorize { .. }) => logins.reauthorize += 1,
        Err(_) => logins.failed += 1,
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_with_a_thousand_apps_and_every_fault() {
    let seed = 20_260_101;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    let broker = &replica.broker;
    let mut entries: Vec<(String, Issuer, Arc<AppEntry>)> = Vec::new();
    for n in 0..APPS {
        let issuer = if n % 3 == 0 { Issuer::Classic } else { Issuer::Stable };
        let appid = format!("wx{n:016}");
        let entry = world.add_app(broker, &appid, issuer).await;
        entries.push((appid, issuer, entry));
    }
    world.pass(secs(120)).await;
    for kind in faults() {
        world.sim.set_fault(Fault::new(kind).likely(0.05));
    }

    let mut served = 0_u64;
    let mut refused = 0_u64;
    let mut outside_ended = 0_u64;
    // Tokens that a report was answered with another token for: known to be dead from then on.
    let mut known_dead: HashSet<String> = HashSet::new();
    let mut watch = Watch::default();
    let mut logins = Logins::default();
    let key = add_key(broker, "services").await;
    for _ in 0..86_400 / STEP {
        world.pass(secs(STEP)).await;
        for _ in 0..60 {
            let (appid, _, entry) = &entries[dice.roll(APPS as u64) as usize];
            let Ok(view) = broker.token(entry, None, Duration::ZERO).await else {
                refused += 1;
                continue;
            };
            served += 1;
            assert!(!known_dead.contains(view.token.expose()), "known to be dead (seed {seed})");
            match world.sim.token_state(appid, view.token.expose()) {
                TokenState::Live => {}
                // Ended from outside, or by mints whose answers got lost: nobody has told us yet.
                TokenState::Superseded => {
                    watch.look(&world);
                    assert!(watch.may_have_ended(appid, &view), "{appid}: {view:?} (seed {seed})");
                    outside_ended += 1;
                    if let Ok(new) = broker.report(entry, None, &view.token, 40001).await
                        && new.token != view.token
                    {
                        known_dead.insert(view.token.expose().to_owned());
                    }
                }
                state => panic!("served a token that is {state:?} (seed {seed})"),
            }
        }
        for _ in 0..3 {
            let (appid, issuer, entry) = &entries[dice.roll(APPS as u64) as usize];
            let _ = broker.ticket(entry, TicketKind::Jsapi).await;
            let _ = broker.user(entry, &OpenId::new("oNobody"), None).await;
            if dice.roll(4) == 0 {
                let outside = match issuer {
                    Issuer::Stable => sim::Issuer::Stable,
                    Issuer::Classic => sim::Issuer::Classic,
                };
                world.sim.foreign_refresh(appid, outside, dice.roll(2) == 0).unwrap();
            }
        }
        for _ in 0..10 {
            let (appid, _, entry) = &entries[dice.roll(APPS as u64) as usize];
            log_in(&world, broker, (appid, entry), &key, &mut dice, &mut logins).await;
        }
        watch.look(&world);
    }
    assert_eq!(watch.codes.len() as u64, logins.codes, "each code once");

    let calls = world.sim.calls();
    for (appid, issuer, _) in &entries {
        let count = |path| calls.count(path, Some(appid), None);
        assert!(count("/cgi-bin/token") <= 2 * 1_000, "{appid}");
        let forced = watch.forced.get(appid).copied().unwrap_or_default();
        assert!(forced <= 2 * 5, "{appid}: {forced} forced");
        if *issuer == Issuer::Stable {
            assert_eq!(count("/cgi-bin/token"), 0, "{appid}");
        }
    }
    println!("{logins:?}");
    let Logins { codes, identities, profiles, reauthorize, .. } = logins;
    assert!(identities > codes / 2 && profiles > codes / 8 && reauthorize > 0);
    println!(
        "served {served}, refused {refused}, ended from outside {outside_ended}, {:?}",
        broker.counters().read()
    );
    assert!(served > 10 * refused, "served {served}, refused {refused}");
    replica.stop().await;
}
