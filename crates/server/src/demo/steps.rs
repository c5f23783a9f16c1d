//! `demo --once`: the walk. Every count is taken from the simulator's own log of calls.

mod logins;

use std::{process::Stdio, time::Duration};

use ::sim::{AppSpec, Fault, FaultKind, Issuer as Minter, TokenState};
use broker::{AppChange, app::Issuer};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use wechat::AppSecret;

use super::{
    client::{Answer, Client},
    service::{Task, Tokens},
    story::Story,
    world::{DemoApp, FOLLOWER, READER, World, operator, random_secret},
};
use crate::{
    cli::{Console, Failure},
    config::span,
};

/// So many services share an app.
const SERVICES: usize = 8;
const MINUTE: Duration = Duration::from_secs(60);
const USER_INFO: &str = "/cgi-bin/user/info";
const STABLE: &str = "/cgi-bin/stable_token";
const CLASSIC: &str = "/cgi-bin/token";
/// The services call for four hours, and a token lives for two.
const NEEDED: u64 = 3;

/// Walks through all steps; answers whether every one passed.
pub(crate) async fn walk(world: &World, console: &mut Console) -> Result<bool, Failure> {
    let story = Story::begin(console, "xinfu against a simulated WeChat, in thirteen steps")?;
    let mut walk = Walk { world, story, client: Client::new() };
    let began = world.clock.now();
    walk.the_naive_way().await?;
    walk.the_same_through_xinfu().await?;
    walk.a_foreign_refresh().await?;
    walk.six_hours().await?;
    walk.wechat_down().await?;
    walk.a_wrong_secret().await?;
    walk.a_follower().await?;
    walk.logins().await?;
    let simulated = span::words(world.clock.now().since(began));
    walk.story.end(&simulated, world.sim.seed())
}

struct Walk<'a> {
    world: &'a World,
    story: Story<'a>,
    client: Client,
}

impl Walk<'_> {
    async fn the_naive_way(&mut self) -> Result<(), Failure> {
        let [_, news] = &self.world.apps;
        self.story.step(
            "The naive way: eight services, each with a token of its own",
            "Eight processes share one official account. Each fetches a token from WeChat, keeps it\n\
             for the two hours that WeChat states, and calls user/info every ten minutes for four\n\
             hours. When a call is refused, it fetches another token for the next one.",
        )?;
        let before = self.counts(news);
        let own = Tokens::Own { appid: news.appid.to_owned(), secret: news.secret.clone() };
        self.load(&own).await?;
        let after = self.counts(news);

        let (calls, failed) = (after.calls - before.calls, after.failed - before.failed);
        let fetched = after.fetches - before.fetches;
        let percent = 100 * failed / calls.max(1);
        self.story.figure("calls of user/info", &calls)?;
        self.story.figure("refused with 40001", &format!("{failed} ({percent} %)"))?;
        self.story
            .figure("tokens fetched", &format!("{fetched}, where {NEEDED} would have done"))?;
        self.story.figure("tokens burnt", &fetched.saturating_sub(NEEDED))?;
        self.story.check(failed > 0, "nothing failed, which is not how WeChat works")?;
        self.story.proves("every fetch kills the token of somebody else: this is what xinfu is for")
    }

    async fn the_same_through_xinfu(&mut self) -> Result<(), Failure> {
        let [shop, news] = &self.world.apps;
        self.story.step(
            "The same load through xinfu",
            "The app is registered at xinfu. The same eight processes make the same calls for four\n\
             hours; each reads the token from xinfu before it calls. None of them has the AppSecret.",
        )?;
        let before = self.counts(news);
        self.world.add_app(shop).await?;
        self.world.add_app(news).await?;
        let url = format!("{}/v1/apps/{}/token", self.world.api, news.alias);
        self.load(&Tokens::Xinfu { url, key: self.key() }).await?;
        let after = self.counts(news);

        let (calls, failed) = (after.calls - before.calls, after.failed - before.failed);
        let fetched = after.fetches - before.fetches;
        self.story.figure("calls of user/info", &calls)?;
        self.story.figure("refused", &failed)?;
        self.story.figure("tokens fetched", &format!("{fetched}, where {NEEDED} are needed"))?;
        self.story.check(failed == 0, "calls were refused")?;
        self.story.check(fetched == NEEDED, "there were other fetches than are needed")?;
        self.story.proves("no call fails, and nothing is fetched that is not needed")
    }

    async fn a_foreign_refresh(&mut self) -> Result<(), Failure> {
        let [_, news] = &self.world.apps;
        self.story.step(
            "Somebody outside fetches a token with the same AppSecret",
            "A forgotten script mints a token at WeChat and the one that xinfu holds is dead at once.\n\
             The first service to notice reports it; the second, still holding the dead one, too.",
        )?;
        let before = self.counts(news);
        let dead = self.read_token(news).await?.text("access_token").to_owned();
        self.world
            .sim
            .foreign_refresh(news.appid, Minter::Classic, true)
            .map_err(|err| Failure::new(err.to_string()))?;
        let refused = self.user_info(&dead, READER).await?.number("errcode");
        let first = self.report(news, &dead, refused).await?;
        let healed = first.text("access_token").to_owned();
        let works = self.user_info(&healed, READER).await?.number("errcode");
        let second = self.report(news, &dead, refused).await?;
        let after = self.counts(news);

        let fetched = after.fetches - before.fetches;
        self.story.figure("the call with the dead token", &format!("errcode {refused}"))?;
        self.story.figure(
            "the first report is answered with",
            &format!("generation {}", first.number("generation")),
        )?;
        self.story.figure(
            "the call with that token",
            &if works == 0 { "works".to_owned() } else { format!("errcode {works}") },
        )?;
        self.story.figure("tokens fetched for two reports", &fetched)?;
        self.story.check(refused == 40001, "the dead token still worked")?;
        self.story.check(works == 0 && healed != dead, "the report did not heal it")?;
        self.story.check(fetched == 1, "one fetch would have been enough")?;
        self.story.check(
            second.text("access_token") == healed,
            "the second report was answered with another token",
        )?;
        self.story.proves("one report heals everybody, and a late report costs nothing")
    }

    async fn six_hours(&mut self) -> Result<(), Failure> {
        self.story.step(
            "Six hours pass",
            "Every five minutes the token of both apps is read from xinfu and tried at WeChat.",
        )?;
        /// A token is replaced 115 minutes after it was fetched, at the earliest.
        const MOST: u64 = 4;
        let (mut reads, mut dead) = (0, 0);
        let before = self.fetches();
        for _ in 0..72 {
            self.world.advance(5 * MINUTE).await?;
            for app in &self.world.apps {
                let answer = self.read_token(app).await?;
                let state = self.world.sim.token_state(app.appid, answer.text("access_token"));
                reads += 1;
                dead += usize::from(state != TokenState::Live);
            }
        }
        let after = self.fetches();
        let [shop, news] = [after[0] - before[0], after[1] - before[1]];
        self.story.figure("tokens read", &reads)?;
        self.story.figure("of them dead", &dead)?;
        self.story.figure(
            "tokens fetched",
            &format!("{shop} for shop (stable_token), {news} for news (cgi-bin/token)"),
        )?;
        self.story.check(dead == 0, "a dead token was served")?;
        for fetched in [shop, news] {
            self.story.check(fetched >= 2, "there were fewer rotations than there should be")?;
            self.story.check(fetched <= MOST, "more was fetched than tokens ended")?;
        }
        self.story.proves("tokens are replaced before they run out, and nobody notices")
    }

    async fn wechat_down(&mut self) -> Result<(), Failure> {
        /// The token runs out so soon after WeChat has come back.
        const REST: Duration = Duration::from_secs(120);
        let [shop, _] = &self.world.apps;
        self.story.step(
            "WeChat is down for twenty minutes, just when the token is due",
            "Every call to WeChat is answered with a gateway's 502. The outage covers the moment at\n\
             which xinfu wants to replace the token of shop, and ends two minutes before it runs out.",
        )?;
        let left =
            |answer: &Answer| Duration::from_secs(answer.number("expires_in").unsigned_abs());
        let mut answer = self.read_token(shop).await?;
        if left(&answer) < 25 * MINUTE {
            self.world.advance(left(&answer)).await?;
            answer = self.read_token(shop).await?;
        }
        self.world.advance(left(&answer).saturating_sub(20 * MINUTE + REST)).await?;
        let generation = self.read_token(shop).await?.number("generation");
        let tried_before = self.count(STABLE, shop, None);

        self.world.sim.set_fault(Fault::new(FaultKind::BadGateway { processed: false }));
        let (mut reads, mut refused) = (0, 0);
        for _ in 0..40 {
            self.world.advance(MINUTE / 2).await?;
            reads += 1;
            refused += usize::from(self.read_token(shop).await?.status != 200);
        }
        self.world.sim.clear_faults();
        let tried = self.count(STABLE, shop, None) - tried_before;

        let mut recovered = None;
        for seconds in (5..=115).step_by(5) {
            self.world.advance(Duration::from_secs(5)).await?;
            let answer = self.read_token(shop).await?;
            refused += usize::from(answer.status != 200);
            reads += 1;
            let state = self.world.sim.token_state(shop.appid, answer.text("access_token"));
            if answer.number("generation") > generation && state == TokenState::Live {
                recovered = Some(seconds);
                break;
            }
        }
        self.story.figure("reads of the token", &reads)?;
        self.story.figure("refused", &refused)?;
        self.story.figure("attempts of xinfu during the outage", &tried)?;
        let words =
            recovered.map_or_else(|| "not at all".to_owned(), |after| format!("after {after} s"));
        self.story.figure("a new token once WeChat is back", &words)?;
        self.story.check(refused == 0, "reads were refused although the old token lived")?;
        self.story.check(tried > 0, "the outage did not cover the refresh")?;
        self.story.check(recovered.is_some(), "xinfu did not recover")?;
        self.story.proves("the old token is served until the new one is there")
    }

    async fn a_wrong_secret(&mut self) -> Result<(), Failure> {
        const APPID: &str = "wxdeadbeef00000003";
        self.story.step(
            "An app with a wrong AppSecret",
            "A third app is registered, with a typing error in its AppSecret; a service asks for its\n\
             token. Then the secret is corrected.",
        )?;
        let secret = random_secret()?;
        self.world.sim.add_app(AppSpec::new(APPID, &secret));
        self.world.register(APPID, "cafe", Issuer::Stable, &random_secret()?).await?;
        let url = format!("{}/v1/apps/cafe/token", self.world.api);
        let wrong = self.client.get(&url, Some(&self.key())).await?;
        let again = self.client.get(&url, Some(&self.key())).await?;
        let asked = self.world.sim.calls().count(STABLE, Some(APPID), None);
        let change = AppChange { secret: Some(AppSecret::new(secret)), ..AppChange::default() };
        self.world.broker.change_app("cafe", change, &operator()).await?;
        let right = self.client.get(&url, Some(&self.key())).await?;

        self.story.figure("the service is answered", &format!("HTTP {}", wrong.status))?;
        self.story.quote("in words", wrong.text("detail"))?;
        self.story.figure("calls to WeChat for two reads", &asked)?;
        self.story.figure("after `xinfu app set-secret`", &format!("HTTP {}", right.status))?;
        let explained = wrong.status == 503 && wrong.text("detail").contains("AppSecret");
        self.story.check(explained, "the answer does not say what is wrong")?;
        self.story.check(again.status == 503 && asked == 1, "WeChat was asked again in vain")?;
        self.story.check(right.status == 200, "the corrected secret does not work")?;
        self.story.proves("what is wrong is said where it hurts, and WeChat is not asked in vain")
    }

    async fn a_follower(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "A follower's record",
            "A service asks xinfu who a follower is, and never sees a token.",
        )?;
        let before = self.count(USER_INFO, shop, Some(0));
        let url = format!("{}/v1/apps/{}/users/{FOLLOWER}", self.world.api, shop.alias);
        let answer = self.client.get(&url, Some(&self.key())).await?;
        let asked = self.count(USER_INFO, shop, Some(0)) - before;
        self.story.quote("xinfu", &answer.body.to_string())?;
        self.story.figure("calls of user/info", &asked)?;
        let right = answer.status == 200 && answer.text("openid") == FOLLOWER;
        self.story.check(right, "this is not the follower's record")?;
        self.story.check(asked == 1, "one call to WeChat would have been enough")?;
        self.story.proves("users can be read by the global token that nobody holds")
    }

    /// Eight processes call `user/info` every ten minutes for four hours.
    async fn load(&self, tokens: &Tokens) -> Result<(), Failure> {
        let task = json!(Task {
            wechat: self.world.sim_api.clone(),
            openid: READER.to_owned(),
            tokens: match tokens {
                Tokens::Own { appid, secret } => {
                    Tokens::Own { appid: appid.clone(), secret: secret.clone() }
                }
                Tokens::Xinfu { url, key } => Tokens::Xinfu { url: url.clone(), key: key.clone() },
            },
        });
        let mut services = Vec::with_capacity(SERVICES);
        for _ in 0..SERVICES {
            services.push(Process::start(&task.to_string()).await?);
        }
        for round in 0..25 {
            if round > 0 {
                self.world.advance(10 * MINUTE).await?;
            }
            let now = self.world.clock.now().as_secs();
            for service in &mut services {
                service.write(&now.to_string()).await?;
            }
            for service in &mut services {
                service.answer().await?;
            }
        }
        for service in services {
            service.end().await?;
        }
        Ok(())
    }

    async fn read_token(&self, app: &DemoApp) -> Result<Answer, Failure> {
        let url = format!("{}/v1/apps/{}/token", self.world.api, app.alias);
        self.client.get(&url, Some(&self.key())).await
    }

    async fn report(&self, app: &DemoApp, token: &str, errcode: i64) -> Result<Answer, Failure> {
        let url = format!("{}/v1/apps/{}/token/report", self.world.api, app.alias);
        let body = json!({"access_token": token, "errcode": errcode});
        self.client.post(&url, Some(&self.key()), &body).await
    }

    async fn user_info(&self, token: &str, openid: &str) -> Result<Answer, Failure> {
        let wechat = &self.world.sim_api;
        let url = format!("{wechat}{USER_INFO}?access_token={token}&openid={openid}");
        self.client.get(&url, None).await
    }

    fn key(&self) -> String {
        self.world.key.expose().to_owned()
    }

    fn count(&self, path: &str, app: &DemoApp, errcode: Option<i64>) -> u64 {
        self.world.sim.calls().count(path, Some(app.appid), errcode)
    }

    /// Tokens asked for by anybody, of each app.
    fn fetches(&self) -> [u64; 2] {
        let [shop, news] = &self.world.apps;
        [self.count(STABLE, shop, None), self.count(CLASSIC, news, None)]
    }

    fn counts(&self, app: &DemoApp) -> Counts {
        let calls = self.count(USER_INFO, app, None);
        Counts {
            calls,
            failed: calls - self.count(USER_INFO, app, Some(0)),
            fetches: self.count(CLASSIC, app, Some(0)),
        }
    }
}

/// Counts of the simulator's log.
struct Counts {
    calls: u64,
    failed: u64,
    fetches: u64,
}

/// A service as a process.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    async fn start(task: &str) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo-service").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let pipe = || Failure::new("a service has no pipe");
        let stdin = child.stdin.take().ok_or_else(pipe)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(pipe)?).lines();
        let mut process = Self { child, stdin, stdout };
        process.write(task).await?;
        Ok(process)
    }

    async fn write(&mut self, line: &str) -> Result<(), Failure> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.stdin.flush().await?)
    }

    async fn answer(&mut self) -> Result<(), Failure> {
        let line = self.stdout.next_line().await?;
        line.map(drop).ok_or_else(|| Failure::new("a service ended before its time"))
    }

    async fn end(self) -> Result<(), Failure> {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        child.wait().await?;
        Ok(())
    }
}
