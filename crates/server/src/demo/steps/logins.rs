//! The second half of the walk: users who log in.

use std::time::Duration;

use ::sim::{Switches, WebGrant};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{MINUTE, SERVICES, USER_INFO, Walk};
use crate::{
    cli::Failure,
    demo::{
        client::Answer,
        world::{DemoApp, FOLLOWER, STRANGER},
    },
};

const EXCHANGE: &str = "/sns/oauth2/access_token";
const RENEWAL: &str = "/sns/oauth2/refresh_token";
const PROFILE: &str = "/sns/userinfo";
/// Where the application takes its users back. Nobody listens: what stands in the address is enough.
const BACK: &str = "http://127.0.0.1/back";
const DAY: Duration = Duration::from_secs(86_400);

impl Walk<'_> {
    /// Walks through the logins.
    pub(super) async fn logins(&mut self) -> Result<(), Failure> {
        // Nobody clicks here: at first since nobody is asked, later since all consent at once.
        let switches = self.world.sim.switches();
        self.world.sim.set_switches(Switches { auto_consent: false, ..switches.clone() });
        self.a_login().await?;
        self.world.sim.set_switches(Switches { auto_consent: true, ..switches });
        self.a_profile().await?;
        self.a_renewal().await?;
        self.a_month().await?;
        self.a_snapshot().await?;
        self.two_kinds_of_tokens().await
    }

    async fn a_login(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "A user logs in, and is not asked (snsapi_base)",
            "A page sends the browser to the address that xinfu makes; WeChat sends it back with a\n\
             code. The browser asks twice, as WeChat's does; and somebody to whom the link was\n\
             forwarded, code and all, opens it too.",
        )?;
        let before = self.count(EXCHANGE, shop, None);
        let page = json!({"redirect_uri": BACK, "scope": "snsapi_base"});
        let code = self.consent(shop, &page, FOLLOWER).await?;
        let first = self.exchange(shop, &code, "this browser").await?;
        let second = self.exchange(shop, &code, "this browser").await?;
        let other = self.exchange(shop, &code, "another browser").await?;
        let exchanged = self.count(EXCHANGE, shop, None) - before;

        self.story.figure("the openid", &first.text("openid"))?;
        self.story.figure("the scope", &first.text("scope"))?;
        let again = if second.body == first.body { "the same" } else { "another answer" };
        self.story.figure("the same browser, again", &again)?;
        self.story.figure("another browser with that code", &problem(&other))?;
        self.story.figure("calls of sns/oauth2/access_token", &exchanged)?;
        self.story.check(first.text("openid") == FOLLOWER, "this is not who logged in")?;
        let scope = first.text("scope");
        self.story.check(scope == "snsapi_base", "more was asked for than the openid")?;
        self.story.check(second.body == first.body, "the repeat was not answered the same")?;
        self.story.check(other.status == 409, "a forwarded link logged somebody in")?;
        self.story.check(exchanged == 1, "the code was sent to WeChat more than once")?;
        self.story.proves("a code is exchanged once, and its answer stays with its browser")
    }

    async fn a_profile(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "A user consents, and the profile is read (snsapi_userinfo)",
            "The user does not follow the account, so that the global token tells nothing of them.\n\
             Their own web token does. xinfu keeps it; the service only names the openid.",
        )?;
        let before = self.count(PROFILE, shop, None);
        let page = json!({"redirect_uri": BACK, "scope": "snsapi_userinfo"});
        let code = self.consent(shop, &page, STRANGER).await?;
        let identity = self.exchange(shop, &code, "this browser").await?;
        let profile = self.profile(shop, false).await?;
        let again = self.profile(shop, false).await?;
        let asked = self.count(PROFILE, shop, None) - before;
        let url = format!("{}/v1/apps/{}/users/{STRANGER}", self.world.api, shop.alias);
        let follower = self.client.get(&url, Some(&self.key())).await?;
        let told = [&identity, &profile, &again, &follower].map(|answer| answer.body.to_string());
        let mut tokens = vec![self.read_token(shop).await?.text("access_token").to_owned()];
        for WebGrant { web_token, refresh_token, .. } in
            self.world.sim.grants_of(shop.appid, STRANGER)
        {
            tokens.extend([web_token, refresh_token]);
        }
        let is_seen = |token: &&String| told.iter().any(|answer| answer.contains(token.as_str()));
        let seen = tokens.iter().filter(is_seen).count();

        self.story.quote("grants/…/profile", &profile.body.to_string())?;
        self.story.quote("users/…", &follower.body.to_string())?;
        self.story.figure("calls of sns/userinfo for two reads", &asked)?;
        let words = format!("{seen} of {}", tokens.len());
        self.story.figure("WeChat's tokens in these answers", &words)?;
        let told = !profile.text("nickname").is_empty() && identity.text("openid") == STRANGER;
        self.story.check(told, "the profile is not that of the user")?;
        let unknown = follower.body["subscribe"] == Value::Bool(false);
        self.story.check(unknown, "the user follows after all")?;
        self.story.check(again.body == profile.body && asked == 1, "WeChat was asked again")?;
        self.story.check(tokens.len() == 3, "WeChat gave other tokens than it should")?;
        self.story.check(seen == 0, "a service was told a token")?;
        self.story.proves("each kind of token tells its own things, and no service sees either")
    }

    async fn a_renewal(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "Two hours later the web token is over",
            "Eight services read the profile at once.",
        )?;
        self.world.advance(125 * MINUTE).await?;
        let before = self.count(RENEWAL, shop, None);
        let reads = join_all((0..SERVICES).map(|_| self.profile(shop, false))).await;
        let reads = reads.into_iter().collect::<Result<Vec<_>, _>>()?;
        let renewed = self.count(RENEWAL, shop, None) - before;
        let answered = reads.iter().filter(|read| read.status == 200).count();

        self.story.figure("profiles read", &answered)?;
        self.story.figure("calls of sns/oauth2/refresh_token", &renewed)?;
        self.story.check(answered == SERVICES, "a profile was not read")?;
        self.story.check(renewed == 1, "one renewal would have been enough")?;
        self.story.proves("web tokens are renewed when they are needed, once for all")
    }

    async fn a_month(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "Thirty-one days later the user has to authorise again",
            "A refresh token lives for 30 days from the authorisation. After 29 of them the web token\n\
             is renewed once more, which prolongs nothing. The days pass at once, as for a machine\n\
             that slept.",
        )?;
        let before = self.count(RENEWAL, shop, None);
        self.world.leap(29 * DAY).await;
        let late = self.profile(shop, true).await?;
        let renewed = self.count(RENEWAL, shop, None) - before;
        self.world.leap(2 * DAY).await;
        let over = self.profile(shop, false).await?;
        let in_vain = self.count(RENEWAL, shop, None) - before - renewed;
        let url = over.text("authorize_url").to_owned();

        self.story.figure("after 29 days", &format!("HTTP {}, {renewed} renewal", late.status))?;
        self.story.figure("after 31 days", &problem(&over))?;
        self.story.figure("renewals tried after the end", &in_vain)?;
        self.story.quote("in words", over.text("detail"))?;
        self.story.quote("authorize_url", &url)?;
        let lived = late.status == 200 && renewed == 1;
        self.story.check(lived, "the web token was not renewed on the last day")?;
        let ended = over.status == 409 && over.text("type").ends_with(":reauthorize");
        self.story.check(ended, "the authorisation did not end after thirty days")?;
        self.story.check(in_vain == 0, "xinfu took the authorisation for prolonged")?;
        self.story.check(!url.is_empty(), "the answer does not say where to send the user")?;

        let code = self.visit(&url, STRANGER, over.text("state")).await?;
        let identity = self.exchange(shop, &code, "this browser").await?;
        let profile = self.profile(shop, false).await?;
        self.story.figure("when the user has been there", &format!("HTTP {}", profile.status))?;
        let back = identity.text("openid") == STRANGER && profile.status == 200;
        self.story.check(back, "the address did not lead back to a profile")?;
        self.story.proves("what only the user can mend is said with the address to send them to")
    }

    async fn a_snapshot(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "Somebody looks at a snapshot of the page",
            "WeChat shows a page that asks for consent too early as a snapshot, and gives it a code of\n\
             a user who does not exist.",
        )?;
        let page =
            json!({"redirect_uri": BACK, "scope": "snsapi_userinfo", "force_snapshot": true});
        let code = self.consent(shop, &page, FOLLOWER).await?;
        let identity = self.exchange(shop, &code, "this browser").await?;
        let openid = identity.text("openid");
        let url = format!("{}/v1/apps/{}/grants/{openid}", self.world.api, shop.alias);
        let held = self.client.get(&url, Some(&self.key())).await?;

        let flag = &identity.body["is_snapshotuser"];
        self.story.figure("is_snapshotuser", flag)?;
        self.story.figure("what is held of that openid", &problem(&held))?;
        self.story.check(*flag == Value::Bool(true), "the snapshot was taken for a user")?;
        self.story.check(held.status == 404, "a user who does not exist was kept")?;
        self.story.proves("made-up users are named as such, and nothing is kept of them")
    }

    async fn two_kinds_of_tokens(&mut self) -> Result<(), Failure> {
        let [shop, _] = &self.world.apps;
        self.story.step(
            "Each kind of token in the other's place",
            "Both are called access_token. In xinfu's code they are two types, and what mixes them\n\
             does not compile. Here both are brought to WeChat by hand, each to both places.",
        )?;
        let global = self.read_token(shop).await?.text("access_token").to_owned();
        let kept = self.world.sim.grants_of(shop.appid, STRANGER);
        let web = kept.into_iter().next_back().map(|WebGrant { web_token, .. }| web_token);
        let web = web.ok_or_else(|| Failure::new("WeChat has no grant of the user"))?;
        let mut told = Vec::new();
        for (kind, token) in [("global", &global), ("web", &web)] {
            for (place, path) in [("user/info", USER_INFO), ("sns/userinfo", PROFILE)] {
                let wechat = &self.world.sim_api;
                let url = format!("{wechat}{path}?access_token={token}&openid={STRANGER}");
                let errcode = self.client.get(&url, None).await?.number("errcode");
                let words =
                    if errcode == 0 { "fine".to_owned() } else { format!("errcode {errcode}") };
                self.story.figure(&format!("the {kind} token at {place}"), &words)?;
                told.push(errcode);
            }
        }
        let right = told == [0, 40001, 40001, 0];
        self.story.check(right, "WeChat did not tell the two apart")?;
        self.story.proves("the two tokens share a name, and nothing else")
    }

    /// Sends the browser of a user to WeChat's page, and answers the code that it comes back with.
    async fn consent(&self, app: &DemoApp, page: &Value, user: &str) -> Result<String, Failure> {
        let url = format!("{}/v1/apps/{}/oauth/authorize-url", self.world.api, app.alias);
        let page = self.client.post(&url, Some(&self.key()), page).await?;
        self.visit(page.text("url"), user, page.text("state")).await
    }

    async fn visit(&self, url: &str, user: &str, state: &str) -> Result<String, Failure> {
        let back = self.client.browse(url, user).await?;
        let query = back.split_once('?').map_or("", |(_, query)| query);
        let find = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        match (find("code"), find("state")) {
            (Some(code), Some(came)) if came == state => Ok(code.to_owned()),
            _ => Err(Failure::new("the browser did not come back with a code and the state")),
        }
    }

    async fn exchange(&self, app: &DemoApp, code: &str, binding: &str) -> Result<Answer, Failure> {
        let url = format!("{}/v1/apps/{}/oauth/exchange", self.world.api, app.alias);
        let body = json!({"code": code, "binding": binding});
        self.client.post(&url, Some(&self.key()), &body).await
    }

    async fn profile(&self, app: &DemoApp, fresh: bool) -> Result<Answer, Failure> {
        let user = format!("{}/v1/apps/{}/grants/{STRANGER}", self.world.api, app.alias);
        let url = format!("{user}/profile?fresh={fresh}");
        self.client.get(&url, Some(&self.key())).await
    }
}

/// A problem in a few words.
fn problem(answer: &Answer) -> String {
    let kind = answer.text("type").rsplit(':').next().unwrap_or_default();
    format!("HTTP {} {kind}", answer.status)
}
