//! The client: one method an endpoint, in the order of WeChat's documents.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Extensions, Method, Request, Uri,
    header::{CONTENT_TYPE, DATE},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::rt::{Read, Write};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connection, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tower::Service;

use crate::{
    AppId, AppSecret, AuthCode, AuthorizePage, Config, ConfigError, Error, Follower, FollowerPage,
    GlobalToken, IssuedGrant, IssuedTicket, IssuedToken, Lang, MiniSession, Mode, OpenId,
    ProtocolError, Quota, RefreshToken, TicketKind, TransportError, WebToken, WebUser,
    answer::{self, Fields, Flaw},
    connect::{BoxError, Connector, Host, Served, reason},
    error::redacted,
    forward::Lane,
    lenient,
};

/// A client of `api.weixin.qq.com`. Cloning is cheap and gives another handle to the same
/// connections.
///
/// A call tries the hosts in their order, all within [`Client::budget`], the exchange of a code
/// within [`Client::exchange_budget`]. The next host is tried
///
/// - when no byte of the request was sent (name, connection, proxy, TLS);
/// - for calls that change nothing at WeChat when asked twice (a normal stable token, tickets,
///   users, profiles, addresses, a quota) also when the connection broke, when half of the time was spent in
///   vain, or when a gateway answered 5xx in WeChat's stead. With a single host such a call is sent
///   once more if it fell on a kept connection that turned out to be dead.
///
/// A classic token, a forced stable token, `clear_quota`, the exchange of a code and the renewal of
/// a web token are therefore never sent twice, and never over a kept connection. An answer with an `errcode` is final for every call.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    hosts: Vec<Host>,
    /// The same hosts, for calls that are carried.
    lanes: Vec<Lane>,
    /// Where the pages for browsers are.
    pages: String,
    /// Keeps connections, for calls that may be sent again.
    kept: Http,
    /// Takes a fresh connection for each call, so that a dead one cannot swallow it.
    fresh: Http,
    call_timeout: Duration,
}

type Http = legacy::Client<Connector, Full<Bytes>>;

/// The longest answer that is read. A full list of 10,000 openids has 0.3 MB.
const LONGEST_BODY: usize = 4 * 1024 * 1024;

/// How long the answer to the exchange of a code is awaited at least: WeChat was seen to take 15
/// seconds, and whoever gives up before has lost the code.
const EXCHANGE: Duration = Duration::from_secs(20);

/// How long an unused connection is kept; gateways drop them without a word.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// What stands in a query as it is: letters, digits and `-._~`.
pub(crate) const QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Client {
    /// A client that connects over TCP.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let connector = config.tcp_connector()?;
        Self::build(config, connector)
    }

    /// A client that connects by `dial` instead of TCP; TLS and the proxy come on top.
    ///
    /// `dial` is called with a URI of scheme and authority, of the host or of the proxy.
    pub fn with_connector<C>(config: Config, dial: C) -> Result<Self, ConfigError>
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Connection + Send + Unpin + 'static,
        C::Future: Send + 'static,
        C::Error: Into<BoxError>,
    {
        let connector = config.connector(dial)?;
        Self::build(config, connector)
    }

    /// The longest that a call can take, other than the exchange of a code.
    pub fn budget(&self) -> Duration {
        self.0.call_timeout
    }

    /// The longest that the exchange of a code can take.
    pub fn exchange_budget(&self) -> Duration {
        self.0.call_timeout.max(EXCHANGE)
    }

    /// `GET cgi-bin/token`: mints a token; the one before it lives five minutes more at most.
    pub async fn token(&self, app: &AppId, secret: &AppSecret) -> Result<IssuedToken, Error> {
        let query = [
            ("grant_type", "client_credential"),
            ("appid", app.as_str()),
            ("secret", secret.expose()),
        ];
        let call = Call::get("/cgi-bin/token", &query, &[secret.expose()]).only_once();
        self.send(call, answer::token).await
    }

    /// `POST cgi-bin/stable_token`: in normal mode the token there is, with what is left of its
    /// life; in force mode a new one.
    pub async fn stable_token(
        &self,
        app: &AppId,
        secret: &AppSecret,
        mode: Mode,
    ) -> Result<IssuedToken, Error> {
        let body = json!({
            "grant_type": "client_credential",
            "appid": app.as_str(),
            "secret": secret.expose(),
            "force_refresh": mode == Mode::Force,
        });
        let call = Call::post("/cgi-bin/stable_token", &[], &body, &[secret.expose()]);
        let call = if mode == Mode::Force { call.only_once() } else { call };
        self.send(call, answer::token).await
    }

    /// `GET cgi-bin/ticket/getticket`: the ticket there is, always stated with its full life.
    pub async fn ticket(
        &self,
        token: &GlobalToken,
        kind: TicketKind,
    ) -> Result<IssuedTicket, Error> {
        let query = [("access_token", token.expose()), ("type", kind.as_str())];
        let call = Call::get("/cgi-bin/ticket/getticket", &query, &[token.expose()]);
        self.send(call, answer::ticket).await
    }

    /// `GET cgi-bin/user/info`: one user. Somebody who does not follow the app is no error.
    ///
    /// A user's web token is refused by WeChat (40001), and here it does not compile:
    ///
    /// ```compile_fail,E0308
    /// # async fn f(client: wechat::Client, user: wechat::OpenId) {
    /// let web = wechat::WebToken::new("the user's");
    /// client.user_info(&web, &user, None).await;
    /// # }
    /// ```
    ///
    /// as the global token does:
    ///
    /// ```
    /// # async fn f(client: wechat::Client, user: wechat::OpenId) {
    /// let global = wechat::GlobalToken::new("the app's");
    /// client.user_info(&global, &user, None).await;
    /// # }
    /// ```
    pub async fn user_info(
        &self,
        token: &GlobalToken,
        user: &OpenId,
        lang: Option<Lang>,
    ) -> Result<Follower, Error> {
        let mut query = vec![("access_token", token.expose()), ("openid", user.as_str())];
        query.extend(lang.map(|lang| ("lang", lang.as_str())));
        let call = Call::get("/cgi-bin/user/info", &query, &[token.expose()]);
        self.send(call, answer::follower).await
    }

    /// `POST cgi-bin/user/info/batchget`: 1 to 100 users; WeChat refuses other numbers.
    pub async fn user_info_batch(
        &self,
        token: &GlobalToken,
        users: &[OpenId],
        lang: Option<Lang>,
    ) -> Result<Vec<Follower>, Error> {
        let entry = |user: &OpenId| match lang {
            Some(lang) => json!({"openid": user.as_str(), "lang": lang.as_str()}),
            None => json!({"openid": user.as_str()}),
        };
        let body = json!({"user_list": users.iter().map(entry).collect::<Vec<_>>()});
        let query = [("access_token", token.expose())];
        let call = Call::post("/cgi-bin/user/info/batchget", &query, &body, &[token.expose()]);
        self.send(call, answer::followers).await
    }

    /// `GET cgi-bin/user/get`: the part of the list of followers that comes after `after`, or its
    /// beginning.
    pub async fn users(
        &self,
        token: &GlobalToken,
        after: Option<&OpenId>,
    ) -> Result<FollowerPage, Error> {
        let mut query = vec![("access_token", token.expose())];
        query.extend(after.map(|after| ("next_openid", after.as_str())));
        let call = Call::get("/cgi-bin/user/get", &query, &[token.expose()]);
        self.send(call, answer::follower_page).await
    }

    /// `GET cgi-bin/get_api_domain_ip`: the addresses of WeChat's API, and the cheapest proof that
    /// a token lives.
    pub async fn api_domain_ips(&self, token: &GlobalToken) -> Result<Vec<String>, Error> {
        let query = [("access_token", token.expose())];
        let call = Call::get("/cgi-bin/get_api_domain_ip", &query, &[token.expose()]);
        self.send(call, answer::ip_list).await
    }

    /// `POST cgi-bin/openapi/quota/get`: the quota of an endpoint, named by its path from
    /// `/cgi-bin/` on.
    pub async fn quota(&self, token: &GlobalToken, cgi_path: &str) -> Result<Quota, Error> {
        let body = json!({"cgi_path": cgi_path});
        let query = [("access_token", token.expose())];
        let call = Call::post("/cgi-bin/openapi/quota/get", &query, &body, &[token.expose()]);
        self.send(call, answer::quota).await
    }

    /// `POST cgi-bin/clear_quota`: sets the day's counters of the app to zero, ten times a month.
    pub async fn clear_quota(&self, token: &GlobalToken, app: &AppId) -> Result<(), Error> {
        let body = json!({"appid": app.as_str()});
        let query = [("access_token", token.expose())];
        let call = Call::post("/cgi-bin/clear_quota", &query, &body, &[token.expose()]).only_once();
        self.send(call, answer::done).await
    }

    /// `POST cgi-bin/clear_quota/v2`: the same without a token, out of the same ten.
    pub async fn clear_quota_v2(&self, app: &AppId, secret: &AppSecret) -> Result<(), Error> {
        let body = json!({"appid": app.as_str(), "appsecret": secret.expose()});
        let call =
            Call::post("/cgi-bin/clear_quota/v2", &[], &body, &[secret.expose()]).only_once();
        self.send(call, answer::done).await
    }

    /// `GET sns/oauth2/access_token`: buys a web token for a user's code, which is spent by it. An
    /// answer that is lost has spent the code too.
    pub async fn exchange_code(
        &self,
        app: &AppId,
        secret: &AppSecret,
        code: &AuthCode,
    ) -> Result<IssuedGrant, Error> {
        let query = [
            ("appid", app.as_str()),
            ("secret", secret.expose()),
            ("code", code.expose()),
            ("grant_type", "authorization_code"),
        ];
        let secrets = [secret.expose(), code.expose()];
        let call = Call::get("/sns/oauth2/access_token", &query, &secrets).only_once().patient();
        self.send(call, answer::grant).await
    }

    /// `GET sns/oauth2/refresh_token`: gives a live web token another life, and replaces a dead
    /// one. It takes the refresh token where tutorials put the access token, and no AppSecret.
    pub async fn refresh_web_token(
        &self,
        app: &AppId,
        refresh_token: &RefreshToken,
    ) -> Result<IssuedGrant, Error> {
        let query = [
            ("appid", app.as_str()),
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose()),
        ];
        let secrets = [refresh_token.expose()];
        let call = Call::get("/sns/oauth2/refresh_token", &query, &secrets).only_once();
        self.send(call, answer::grant).await
    }

    /// `GET sns/auth`: whether a web token is good for its user.
    pub async fn check_web_token(&self, token: &WebToken, user: &OpenId) -> Result<(), Error> {
        let query = [("access_token", token.expose()), ("openid", user.as_str())];
        let call = Call::get("/sns/auth", &query, &[token.expose()]);
        self.send(call, answer::done).await
    }

    /// `GET sns/userinfo`: the profile of a user who has consented to it.
    ///
    /// The global token is refused by WeChat (40001), and here it does not compile:
    ///
    /// ```compile_fail,E0308
    /// # async fn f(client: wechat::Client, user: wechat::OpenId) {
    /// let global = wechat::GlobalToken::new("the app's");
    /// client.web_user(&global, &user, None).await;
    /// # }
    /// ```
    ///
    /// as the web token does:
    ///
    /// ```
    /// # async fn f(client: wechat::Client, user: wechat::OpenId) {
    /// let web = wechat::WebToken::new("the user's");
    /// client.web_user(&web, &user, None).await;
    /// # }
    /// ```
    pub async fn web_user(
        &self,
        token: &WebToken,
        user: &OpenId,
        lang: Option<Lang>,
    ) -> Result<WebUser, Error> {
        let mut query = vec![("access_token", token.expose()), ("openid", user.as_str())];
        query.extend(lang.map(|lang| ("lang", lang.as_str())));
        let call = Call::get("/sns/userinfo", &query, &[token.expose()]);
        self.send(call, answer::web_user).await
    }

    /// `GET sns/jscode2session`: who has logged in to a mini program, for the code of `wx.login`,
    /// which is spent by it.
    pub async fn exchange_js_code(
        &self,
        app: &AppId,
        secret: &AppSecret,
        code: &AuthCode,
    ) -> Result<MiniSession, Error> {
        let query = [
            ("appid", app.as_str()),
            ("secret", secret.expose()),
            ("js_code", code.expose()),
            ("grant_type", "authorization_code"),
        ];
        let secrets = [secret.expose(), code.expose()];
        let call = Call::get("/sns/jscode2session", &query, &secrets).only_once().patient();
        self.send(call, answer::mini_session).await
    }

    /// The address of the page where a user of an official account consents, or is known silently.
    pub fn authorize_url(&self, page: &AuthorizePage<'_>) -> String {
        page.url(&self.0.pages)
    }

    /// What WeChat's clock says, as the header `Date` has it: of the answer to a call without a
    /// token, which costs nothing. `None`: the answer does not say.
    pub async fn server_date(&self) -> Result<Option<String>, Error> {
        let call = Call::get("/cgi-bin/get_api_domain_ip", &[], &[]);
        self.exchange(&call, |answer| Ok(answer.date.clone())).await
    }

    fn build(config: Config, connector: Connector) -> Result<Self, ConfigError> {
        let call_timeout = config.call_timeout;
        let pages = config.pages_base()?;
        let hosts = config.into_hosts()?;
        let lanes = hosts.iter().map(|host| host.lane(&connector)).collect::<Option<_>>();
        let lanes = lanes.ok_or(ConfigError::Host)?;
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(KEEP_IDLE);
        let kept = builder.build(connector.clone());
        let fresh = builder.pool_max_idle_per_host(0).build(connector);
        Ok(Self(Arc::new(Inner { hosts, lanes, pages, kept, fresh, call_timeout })))
    }

    pub(crate) fn lanes(&self) -> &[Lane] {
        &self.0.lanes
    }

    /// Sends a call, and picks what its answer says.
    async fn send<T>(
        &self,
        call: Call<'_>,
        pick: fn(&mut Fields) -> Result<T, Flaw>,
    ) -> Result<T, Error> {
        self.exchange(&call, |answer| read(answer, &call, pick)).await
    }

    /// Sends a call to the hosts in their order until one has answered.
    async fn exchange<T>(
        &self,
        call: &Call<'_>,
        read: impl Fn(&Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.0.call_timeout.max(call.at_least);
        let mut hosts = self.0.hosts.as_slice();
        let mut second_chance = call.repeatable && hosts.len() == 1;
        let mut sent = false;
        let mut reasons = Vec::new();

        while let Some((host, others)) = hosts.split_first() {
            // A host that swallows the request must leave the others their share of the time.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let shares = if call.repeatable { hosts.len() } else { 1 };
            let share = left / u32::try_from(shares).unwrap_or(u32::MAX);

            let failure = match self.attempt(call, host, share).await {
                Ok(answer) => match read(&answer) {
                    Err(Error::Protocol(ProtocolError { status: status @ 500.., .. }))
                        if call.repeatable && !others.is_empty() =>
                    {
                        Failure { sent: true, stale: false, reason: format!("HTTP {status}") }
                    }
                    read => return read,
                },
                Err(failure) => failure,
            };

            sent |= failure.sent;
            reasons.push(format!("{}: {}", host.name, failure.reason));
            if failure.sent && !call.repeatable {
                break;
            }
            if failure.stale && second_chance {
                second_chance = false;
            } else {
                hosts = others;
            }
        }

        let reason = redacted(&reasons.join("; "), &call.secrets);
        Err(TransportError { sent, reason }.into())
    }

    /// Sends a call to one host and takes in the whole answer.
    async fn attempt(
        &self,
        call: &Call<'_>,
        host: &Host,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = call.request(host)?;
        let connection = capture_connection(&mut request);
        let http = if call.repeatable { &self.0.kept } else { &self.0.fresh };
        let exchange = async {
            let response = http.request(request).await.map_err(|error| Failure::of(&error))?;
            let status = response.status().as_u16();
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
            let date = date.map(str::to_owned);
            let used_before = response.extensions().get::<Served>().is_some_and(Served::note);
            match Limited::new(response.into_body(), LONGEST_BODY).collect().await {
                Ok(body) => Ok(Answer { status, date, body: Some(body.to_bytes()) }),
                Err(error) if error.is::<LengthLimitError>() => {
                    Ok(Answer { status, date, body: None })
                }
                Err(error) => {
                    let reason = format!("the answer broke off: {}", reason(&*error));
                    Err(Failure { sent: true, stale: used_before, reason })
                }
            }
        };
        timeout(limit, exchange).await.unwrap_or_else(|_| {
            // Without a connection, nothing was sent.
            let sent = connection.connection_metadata().is_some();
            let what = if sent { "answer" } else { "connection" };
            let reason = format!("no {what} within {:.1} s", limit.as_secs_f32());
            Err(Failure { sent, stale: false, reason })
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.hosts[0].name).finish()
    }
}

/// A request before it has a host.
struct Call<'a> {
    method: Method,
    path_and_query: String,
    body: Bytes,
    /// The secrets in it.
    secrets: Vec<&'a str>,
    /// Whether asking twice changes nothing at WeChat.
    repeatable: bool,
    /// The least budget of the call.
    at_least: Duration,
}

impl<'a> Call<'a> {
    fn get(path: &str, query: &[(&str, &str)], secrets: &[&'a str]) -> Self {
        let mut path_and_query = path.to_owned();
        for (at, (name, value)) in query.iter().enumerate() {
            path_and_query.push(if at == 0 { '?' } else { '&' });
            path_and_query.push_str(name);
            path_and_query.push('=');
            path_and_query.extend(utf8_percent_encode(value, QUERY));
        }
        let (method, body, secrets) = (Method::GET, Bytes::new(), secrets.to_vec());
        let (repeatable, at_least) = (true, Duration::ZERO);
        Self { method, path_and_query, body, secrets, repeatable, at_least }
    }

    fn post(path: &str, query: &[(&str, &str)], body: &Value, secrets: &[&'a str]) -> Self {
        let body = Bytes::from(body.to_string());
        Self { method: Method::POST, body, ..Self::get(path, query, secrets) }
    }

    /// The call as one that must not reach WeChat twice.
    fn only_once(self) -> Self {
        Self { repeatable: false, ..self }
    }

    /// The call as one whose answer is worth waiting for, because there is no second one.
    fn patient(self) -> Self {
        Self { at_least: EXCHANGE, ..self }
    }

    fn request(&self, host: &Host) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("{}{}", host.base_url, self.path_and_query));
        if self.method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(self.body.clone())).map_err(|_| Failure {
            sent: false,
            stale: false,
            reason: "the request is too long".to_owned(),
        })
    }
}

/// The status, the date and, unless it is too long, the body.
struct Answer {
    status: u16,
    date: Option<String>,
    body: Option<Bytes>,
}

fn read<T>(
    answer: &Answer,
    call: &Call<'_>,
    pick: fn(&mut Fields) -> Result<T, Flaw>,
) -> Result<T, Error> {
    let status = answer.status;
    match &answer.body {
        Some(body) => lenient::read(status, body, &call.secrets, pick),
        None => Err(ProtocolError { reason: "it is longer than 4 MiB".to_owned(), status }.into()),
    }
}

/// An attempt without an answer.
struct Failure {
    /// Whether WeChat may have got the request.
    sent: bool,
    /// Whether it fell on a connection that had served before and then broke.
    stale: bool,
    reason: String,
}

impl Failure {
    fn of(error: &legacy::Error) -> Self {
        let cause = error.source();
        // hyper cancels only requests of which it has written nothing.
        let canceled = cause
            .and_then(|cause| cause.downcast_ref::<hyper::Error>())
            .is_some_and(hyper::Error::is_canceled);
        let mut extensions = Extensions::new();
        if let Some(connection) = error.connect_info() {
            connection.get_extras(&mut extensions);
        }
        Self {
            sent: !error.is_connect() && !canceled,
            stale: extensions.get::<Served>().is_some_and(Served::before),
            reason: cause.map_or_else(|| "no connection".to_owned(), reason),
        }
    }
}
