//! The pages of `open.weixin.qq.com`, for browsers: consent inside WeChat, QR codes outside, and
//! what the phone shows that scanned one. Where these lead is decided in [`connect`](crate::connect).

use bytes::Bytes;
use clock::Timestamp;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use qrcode::{Color, EcLevel, QrCode};
use serde_json::json;

use crate::{
    Sim,
    answer::http_date,
    connect::{Callback, Door, PageError, Stage, Wanted},
    oauth::Scope,
    serve::pairs,
    state::State,
};

mod html;

use html::{Language, Page, escape, put, redirect};

const AUTHORIZE: &str = "/connect/oauth2/authorize";
const QR_CONNECT: &str = "/connect/qrconnect";
/// Where the page with a QR code goes when the phone has decided.
const SCANNED: &str = "/connect/qrconnect/wait";
/// What that page polls.
const POLL: &str = "/connect/l/qrconnect";
/// What a QR code leads to.
const CONFIRM: &str = "/connect/confirm";
/// Makes any browser pass for WeChat's.
const ACT: &str = "/connect/act-as-wechat";

/// The cookie of a browser that passes for WeChat's.
const ACTING: &str = "sim_wechat";
/// The cookie that remembers the user who consented last.
const PERSON: &str = "sim_openid";
/// The header of a client without a browser that says which user it is.
const NAMED: &str = "x-sim-openid";

/// Whether a path is one of the pages or looks like one.
pub(crate) fn is_page(path: &str) -> bool {
    path.starts_with("/connect/")
}

/// A request of a browser, read whole.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// The query as it was sent.
    pub(crate) target: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Visit {
    fn query(&self, name: &str) -> Option<&str> {
        find(&self.query, name)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn cookie(&self, name: &str) -> Option<String> {
        let sent = self.headers.get_all(header::COOKIE).into_iter();
        let mut all = sent.filter_map(|one| one.to_str().ok()).flat_map(|one| one.split(';'));
        let value = all.find_map(|one| one.trim().strip_prefix(name)?.strip_prefix('='))?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }

    fn is_in_wechat(&self) -> bool {
        let agent = self.header(header::USER_AGENT.as_str());
        agent.is_some_and(|agent| agent.contains("MicroMessenger")) || self.cookie(ACTING).is_some()
    }
}

fn find<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// Answers a browser.
pub(crate) fn answer(sim: &Sim, visit: &Visit) -> Response<String> {
    let mut state = sim.state();
    let nonce = state.visits.write_name();
    let language = Language::of(visit);
    let now = sim.now();
    let mut response = Desk { state: &mut state, visit, language, nonce, now }.answer();
    put(&mut response, header::DATE, &http_date(now));
    response
}

/// One visit being answered.
struct Desk<'a> {
    state: &'a mut State,
    visit: &'a Visit,
    language: Language,
    nonce: String,
    now: Timestamp,
}

impl Desk<'_> {
    fn answer(mut self) -> Response<String> {
        // What asks, issues or marks something is no reading, and so refuses HEAD.
        let opens = self.visit.method == Method::GET;
        let reads = opens || self.visit.method == Method::HEAD;
        let posts = self.visit.method == Method::POST;
        match self.visit.path.as_str() {
            AUTHORIZE if opens => self.authorize(),
            QR_CONNECT if opens => self.qr_connect(),
            SCANNED if reads => self.wait(),
            POLL if reads => {
                let stage = self.state.visits.stage(self.uuid(), self.now);
                html::json(json!({ "status": stage.name() }).to_string())
            }
            CONFIRM if opens => self.confirm(),
            AUTHORIZE | CONFIRM if posts => self.decide(),
            ACT if reads => self.act_as_wechat(),
            AUTHORIZE | QR_CONNECT | SCANNED | POLL | CONFIRM | ACT => self.notice(
                StatusCode::METHOD_NOT_ALLOWED,
                ("不支持这种请求", "This page has no such method"),
                "",
            ),
            _ => self.notice(StatusCode::NOT_FOUND, ("没有这个页面", "There is no such page"), ""),
        }
    }

    /// The page that an app of an official account sends its visitors to.
    fn authorize(&mut self) -> Response<String> {
        let wanted = match self.state.check_door(Door::Authorize, &self.visit.query) {
            Ok(wanted) => wanted,
            Err(error) => return self.error(error),
        };
        if self.state.switches.auto_consent {
            return self.consent_at_once(&wanted);
        }
        if !self.visit.is_in_wechat() {
            return self.open_in_wechat();
        }
        if wanted.scope == Scope::Base {
            let person = self.person(&wanted);
            let called = person.and_then(|openid| self.state.call_back(&wanted, &openid, self.now));
            return match called {
                Ok(callback) => self.go(&callback),
                Err(error) => self.error(error),
            };
        }
        self.question(wanted, None)
    }

    /// The page that a website sends its visitors to.
    fn qr_connect(&mut self) -> Response<String> {
        let wanted = match self.state.check_door(Door::QrConnect, &self.visit.query) {
            Ok(wanted) => wanted,
            Err(error) => return self.error(error),
        };
        if self.state.switches.auto_consent {
            return self.consent_at_once(&wanted);
        }
        let uuid = self.state.visits.start_scan(wanted, self.now);
        self.qr_page(&uuid)
    }

    /// Where the page with the QR code is when the phone has decided, or has not yet.
    fn wait(&self) -> Response<String> {
        match self.state.visits.stage(self.uuid(), self.now) {
            Stage::Waiting | Stage::Scanned => self.qr_page(self.uuid()),
            Stage::Confirmed(callback) => self.go(&callback),
            Stage::Denied => self.denied(),
            Stage::Over => self.over(),
        }
    }

    /// What the phone shows that scanned a QR code.
    fn confirm(&mut self) -> Response<String> {
        let uuid = self.uuid().to_owned();
        match self.state.visits.stage(&uuid, self.now) {
            Stage::Waiting | Stage::Scanned => {}
            Stage::Confirmed(_) | Stage::Denied | Stage::Over => return self.over(),
        }
        let Some(wanted) = self.state.visits.wanted(&uuid).cloned() else { return self.over() };
        self.state.visits.set_stage(&uuid, Stage::Scanned);
        self.question(wanted, Some(uuid))
    }

    /// The form of a question comes back.
    fn decide(&mut self) -> Response<String> {
        let form = pairs(&String::from_utf8_lossy(&self.visit.body));
        let field = |name| find(&form, name).unwrap_or_default();
        let Some((wanted, scan)) = self.state.visits.take(field("ticket"), self.now) else {
            return self.over();
        };
        if let Some(uuid) = &scan
            && !matches!(self.state.visits.stage(uuid, self.now), Stage::Waiting | Stage::Scanned)
        {
            return self.over();
        }
        if field("decision") != "allow" {
            if let Some(uuid) = &scan {
                self.state.visits.set_stage(uuid, Stage::Denied);
            }
            return self.denied();
        }
        let openid = match self.state.person(&wanted.appid, Some(field("openid")), None) {
            Ok(openid) => openid,
            Err(error) => return self.error(error),
        };
        let callback = match self.state.call_back(&wanted, &openid, self.now) {
            Ok(callback) => callback,
            Err(error) => return self.error(error),
        };
        let mut response = match scan {
            None => self.go(&callback),
            Some(uuid) => {
                self.state.visits.set_stage(&uuid, Stage::Confirmed(callback));
                let title = ("已确认登录", "Login confirmed");
                let text = self
                    .language
                    .pick("请回到电脑上的网页", "Go back to the page that showed the QR code");
                self.notice(StatusCode::OK, title, &format!("<p>{text}</p>\n"))
            }
        };
        let value = utf8_percent_encode(&openid, NON_ALPHANUMERIC);
        let cookie = format!("{PERSON}={value}; Path=/connect; HttpOnly; SameSite=Lax");
        put(&mut response, header::SET_COOKIE, &cookie);
        response
    }

    /// From now on the browser passes for WeChat's.
    fn act_as_wechat(&self) -> Response<String> {
        let to = self.visit.query("to").unwrap_or_default();
        if !to.starts_with(AUTHORIZE) {
            return self.over();
        }
        let mut response = redirect(to);
        let cookie = format!("{ACTING}=1; Path=/connect; HttpOnly; SameSite=Lax");
        put(&mut response, header::SET_COOKIE, &cookie);
        response
    }

    /// Consent without a browser.
    fn consent_at_once(&mut self, wanted: &Wanted) -> Response<String> {
        let person = self.state.person(&wanted.appid, self.visit.header(NAMED), None);
        let called = person.and_then(|openid| self.state.call_back(wanted, &openid, self.now));
        let callback = match called {
            Ok(callback) => callback,
            Err(error) => return self.error(error),
        };
        let mut response = redirect(&callback.first);
        if let Some(second) = &callback.second {
            const SECOND: HeaderName = HeaderName::from_static("x-sim-second-callback");
            put(&mut response, SECOND, &html::address(&second.address));
        }
        response
    }

    /// Sends the browser back to the app, once or twice.
    fn go(&self, callback: &Callback) -> Response<String> {
        let Some(second) = &callback.second else { return redirect(&callback.first) };
        let after = second.after_ms.to_string();
        let title = self.language.pick("正在返回应用", "Going back to the app");
        Page {
            language: self.language,
            title,
            body: format!("<p><a href=\"{}\">{title}</a></p>\n", escape(&callback.first)),
            script: Some((
                GO_TWICE,
                vec![
                    ("first", callback.first.as_str()),
                    ("second", second.address.as_str()),
                    ("after", after.as_str()),
                ],
            )),
            refresh: Some(&callback.first),
        }
        .respond(StatusCode::OK, &self.nonce)
    }

    /// Asks which user consents.
    fn question(&mut self, wanted: Wanted, scan: Option<String>) -> Response<String> {
        let current = match self.person(&wanted) {
            Ok(openid) => openid,
            Err(error) => return self.error(error),
        };
        let appid = escape(&wanted.appid);
        let mut users = String::new();
        // Of very many users only the first, so that the page stays one.
        let all = self.state.users_of(&wanted.appid).enumerate();
        for (_, user) in all.filter(|(place, user)| *place < 200 || user.openid == current) {
            let openid = escape(&user.openid);
            let checked = if user.openid == current { " checked" } else { "" };
            let name = escape(&user.nickname);
            users.push_str(&format!(
                "<label><input type=\"radio\" name=\"openid\" value=\"{openid}\"{checked}> \
                 <bdi>{name}</bdi> <code>{openid}</code></label>\n"
            ));
        }
        let action = if scan.is_some() { CONFIRM } else { AUTHORIZE };
        let snapshot = match wanted.snapshot {
            true => self.language.pick(
                "<p>快照页：应用得到的是虚拟账号</p>\n",
                "<p>A snapshot page: the app will get a virtual account</p>\n",
            ),
            false => "",
        };
        let ticket = self.state.visits.ask(wanted, scan, self.now);
        let language = self.language;
        let what = language.pick("申请获取你的昵称、头像", "asks for your nickname and picture");
        let allow = language.pick("允许", "Allow");
        let deny = language.pick("拒绝", "Deny");
        let tag = language.pick("zh", "en");
        let body = format!(
            "<p><code>{appid}</code> {what}</p>\n{snapshot}\
             <form method=\"post\" action=\"{action}?lang={tag}\">\n\
             <input type=\"hidden\" name=\"ticket\" value=\"{ticket}\">\n{users}\
             <button class=\"allow\" name=\"decision\" value=\"allow\">{allow}</button>\n\
             <button name=\"decision\" value=\"deny\">{deny}</button>\n</form>\n"
        );
        self.notice(StatusCode::OK, ("微信授权", "Log in with WeChat"), &body)
    }

    fn qr_page(&self, uuid: &str) -> Response<String> {
        let language = self.language;
        let host = self.visit.header(header::HOST.as_str()).unwrap_or("localhost");
        let svg = svg(&format!("http://{host}{CONFIRM}?uuid={uuid}")).unwrap_or_default();
        let tag = language.pick("zh", "en");
        let next = format!("{SCANNED}?uuid={uuid}&lang={tag}");
        let poll = format!("{POLL}?uuid={uuid}");
        let scan = language.pick("请使用微信扫描二维码登录", "Scan this QR code with WeChat");
        let scanned = language.pick("已扫描，请在手机上确认", "Scanned: confirm it on the phone");
        let here = language.pick("没有手机？在这里确认", "No phone? Confirm it here");
        let link = escape(&format!("{CONFIRM}?uuid={uuid}&lang={tag}"));
        let body = format!(
            "{svg}<p id=\"status\" role=\"status\">{scan}</p>\n\
             <p><a href=\"{link}\" target=\"_blank\" rel=\"noopener\">{here}</a></p>\n"
        );
        let data = vec![("poll", poll.as_str()), ("next", next.as_str()), ("scanned", scanned)];
        Page {
            language,
            title: language.pick("微信登录", "Log in with WeChat"),
            body,
            script: Some((WATCH, data)),
            refresh: Some(&next),
        }
        .respond(StatusCode::OK, &self.nonce)
    }

    fn open_in_wechat(&self) -> Response<String> {
        let language = self.language;
        let target = format!("{AUTHORIZE}?{}", self.visit.target);
        let target = utf8_percent_encode(&target, NON_ALPHANUMERIC);
        let why = language.pick(
            "这个页面只在微信内打开。WeChat 的浏览器以 User-Agent 里的 MicroMessenger 识别。",
            "WeChat shows this page to its own browser only, which it knows by MicroMessenger in \
             the user agent.",
        );
        let act = language.pick("让这个浏览器充当微信", "Let this browser pass for WeChat's");
        let body = format!("<p>{why}</p>\n<p><a href=\"{ACT}?to={target}\">{act}</a></p>\n");
        let title = ("请在微信客户端打开链接", "Open this link in WeChat");
        self.notice(StatusCode::OK, title, &body)
    }

    fn denied(&self) -> Response<String> {
        let text = self.language.pick("可以关闭这个页面", "This page can be closed");
        let title = ("你拒绝了授权", "You denied it");
        self.notice(StatusCode::OK, title, &format!("<p>{text}</p>\n"))
    }

    fn over(&self) -> Response<String> {
        let text = self.language.pick("请重新登录", "Start the login again");
        let title = ("页面已失效", "This page is no longer valid");
        self.notice(StatusCode::OK, title, &format!("<p>{text}</p>\n"))
    }

    fn error(&self, error: PageError) -> Response<String> {
        let text = escape(self.language.pick(error.chinese, error.english));
        let code = match error.code {
            0 => String::new(),
            code => {
                format!("<p>{} {code}</p>\n", self.language.pick("错误码：", "Error code:"))
            }
        };
        let title = ("无法授权", "This cannot be authorised");
        self.notice(StatusCode::OK, title, &format!("<p>{text}</p>\n{code}"))
    }

    /// A page without a script.
    fn notice(&self, status: StatusCode, title: (&str, &str), body: &str) -> Response<String> {
        Page {
            language: self.language,
            title: self.language.pick(title.0, title.1),
            body: body.to_owned(),
            script: None,
            refresh: None,
        }
        .respond(status, &self.nonce)
    }

    fn person(&self, wanted: &Wanted) -> Result<String, PageError> {
        let before = self.visit.cookie(PERSON);
        self.state.person(&wanted.appid, self.visit.header(NAMED), before.as_deref())
    }

    fn uuid(&self) -> &str {
        self.visit.query("uuid").unwrap_or_default()
    }
}

/// A QR code as a drawing; `None` when the text is too long for one.
fn svg(text: &str) -> Option<String> {
    const QUIET: usize = 4;
    let code = QrCode::with_error_correction_level(text, EcLevel::M).ok()?;
    let width = code.width();
    let mut dots = String::new();
    for (place, color) in code.to_colors().into_iter().enumerate() {
        if color == Color::Dark {
            let (x, y) = (place % width + QUIET, place / width + QUIET);
            dots.push_str(&format!("M{x} {y}h1v1h-1z"));
        }
    }
    let side = width + 2 * QUIET;
    Some(format!(
        "<svg viewBox=\"0 0 {side} {side}\" role=\"img\" aria-label=\"QR\" \
         shape-rendering=\"crispEdges\"><path fill=\"#fff\" d=\"M0 0h{side}v{side}H0z\"/>\
         <path d=\"{dots}\"/></svg>\n"
    ))
}

/// Goes to an address, and to the second if the first has not answered by then.
///
/// Where the second follows at once, the script is busy for a moment in between. Without it Chromium
/// drops the first request before it leaves; a timer instead would lose to an app that answers
/// sooner, because its page takes the place of this one.
const GO_TWICE: &str = "\
const {first, second, after} = document.currentScript.dataset;\
addEventListener('load', () => {\
location.assign(first);\
const again = () => location.assign(second);\
if (after !== '0') return setTimeout(again, Number(after));\
const end = performance.now() + 20;\
while (performance.now() < end);\
again();\
});";

/// Watches a scan, and goes on when the phone has decided.
const WATCH: &str = "\
const {poll, next, scanned} = document.currentScript.dataset;\
const ask = async () => {\
try {\
const {status} = await (await fetch(poll)).json();\
if (status === 'scanned') document.getElementById('status').textContent = scanned;\
else if (status !== 'waiting') return location.replace(next);\
} catch {}\
setTimeout(ask, 700);\
};\
ask();";
