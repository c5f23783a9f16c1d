//! The table of WeChat's return codes: what each means and what it asks for.

/// One return code of WeChat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    /// The code.
    pub code: i64,
    /// The text that comes with it, without what changes from request to request; empty where it
    /// is not known.
    pub stem: &'static str,
    /// What it means for a caller of this client.
    pub meaning: &'static str,
    /// What it is about.
    pub kind: Kind,
    /// What to do.
    pub action: Action,
    /// The two on an endpoint that is called with the AppSecret, where they differ there.
    pub with_secret: Option<(Kind, Action)>,
    /// What a person has to do; always there when an action is [`Action::Human`].
    pub human: Option<&'static str>,
}

/// What a return code is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// WeChat is busy.
    Busy,
    /// The global token is not, or no longer, valid.
    InvalidToken,
    /// The appid or the AppSecret is wrong.
    BadCredential,
    /// The address of the caller is not, or not yet, allowed.
    IpRefused,
    /// A limit on the number of calls.
    Quota,
    /// The account is frozen, punished or lacks a permission.
    Account,
    /// The request is wrong.
    BadRequest,
    /// The user's authorisation is missing, used or over.
    Authorisation,
    /// The user is in no state that allows the call.
    User,
    /// The third-party platform, its ticket or its authorisation.
    Component,
    /// Nothing that this table knows.
    Other,
}

/// What a return code asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The same call again, later and later.
    Retry,
    /// Another token, then the same call once more.
    RefreshToken,
    /// The same call when the limit or the ban has ended.
    Wait,
    /// The user must go through the authorisation again.
    Reauthorise,
    /// A person must change something first.
    Human,
    /// Nothing: the same call would fail again.
    Never,
}

/// Every code that is known, in ascending order.
pub fn table() -> &'static [ErrorCode] {
    TABLE
}

/// The row of a code.
pub fn find(code: i64) -> Option<&'static ErrorCode> {
    TABLE.binary_search_by_key(&code, |row| row.code).ok().map(|at| &TABLE[at])
}

/// The table as a page of the reference.
pub fn errors_markdown() -> String {
    let mut page = String::from(
        "# Return codes of WeChat\n\n\
         What WeChat's `errcode` values mean and what each asks for; 0 is success, and a code that \
         is not here is never retried.\n\n\
         <!-- Generated from the table in crates/wechat by `cargo xtask codegen`: do not edit. -->\n\n\
         | code | WeChat's text | meaning | kind | action | what a person does |\n\
         |---:|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let ErrorCode { code, stem, meaning, kind, action, with_secret, human } = row;
        let stem = if stem.is_empty() { String::new() } else { format!("`{stem}`") };
        let human = human.unwrap_or_default();
        let (mut kind, mut action) = (kind.as_str().to_owned(), action.as_str().to_owned());
        if let Some((kind_there, action_there)) = with_secret {
            kind = format!("{kind}; with the AppSecret {}", kind_there.as_str());
            action = format!("{action}; with the AppSecret {}", action_there.as_str());
        }
        page.push_str(&format!("| {code} | {stem} | {meaning} | {kind} | {action} | {human} |\n"));
    }
    page
}

impl Kind {
    /// The kind's name in the reference and in machine-readable output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::InvalidToken => "invalid_token",
            Self::BadCredential => "bad_credential",
            Self::IpRefused => "ip_refused",
            Self::Quota => "quota",
            Self::Account => "account",
            Self::BadRequest => "bad_request",
            Self::Authorisation => "authorisation",
            Self::User => "user",
            Self::Component => "component",
            Self::Other => "other",
        }
    }
}

impl Action {
    /// The action's name in the reference and in machine-readable output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::RefreshToken => "refresh_token",
            Self::Wait => "wait",
            Self::Reauthorise => "reauthorise",
            Self::Human => "human",
            Self::Never => "never",
        }
    }
}

const fn row(
    code: i64,
    kind: Kind,
    action: Action,
    stem: &'static str,
    meaning: &'static str,
) -> ErrorCode {
    ErrorCode { code, stem, meaning, kind, action, with_secret: None, human: None }
}

impl ErrorCode {
    const fn with_secret(self, kind: Kind, action: Action) -> Self {
        Self { with_secret: Some((kind, action)), ..self }
    }

    const fn for_people(self, sentence: &'static str) -> Self {
        Self { human: Some(sentence), ..self }
    }
}

const TABLE: &[ErrorCode] = &[
    row(-1, Kind::Busy, Action::Retry, "system error", "WeChat is busy"),
    row(40001, Kind::InvalidToken, Action::RefreshToken, "invalid credential, access_token is invalid or not latest", "the global token is stale or of another app; from the token endpoints: the AppSecret is wrong").with_secret(Kind::BadCredential, Action::Human).for_people("If a token endpoint answered this, the AppSecret is wrong: set the one that the WeChat console issued last"),
    row(40002, Kind::BadRequest, Action::Never, "invalid grant_type", "`grant_type` is not `client_credential`"),
    row(40003, Kind::BadRequest, Action::Never, "invalid openid", "the openid is wrong or of another app"),
    row(40013, Kind::BadCredential, Action::Human, "invalid appid", "there is no such app").for_people("Check the appid in the WeChat console, and that it belongs to the AppSecret"),
    row(40014, Kind::InvalidToken, Action::RefreshToken, "invalid access_token", "the global token is malformed or of another app"),
    row(40029, Kind::Authorisation, Action::Reauthorise, "invalid code", "the authorisation code is over, used, wrong or of another app"),
    row(40030, Kind::Authorisation, Action::Reauthorise, "invalid refresh_token", "the refresh token is wrong or of another app"),
    row(40031, Kind::BadRequest, Action::Never, "invalid openid list", "the list of openids is malformed"),
    row(40032, Kind::BadRequest, Action::Never, "invalid openid list size", "the list has no openid or more than 100"),
    row(40035, Kind::BadRequest, Action::Never, "invalid args size", "an argument has the wrong size"),
    row(40066, Kind::BadRequest, Action::Never, "invalid url", "there is no API at this path"),
    row(40090, Kind::IpRefused, Action::Human, "bad client ip", "the caller's address is refused").for_people("Check through which address the server reaches WeChat, and add it to the IP whitelist in the WeChat console"),
    row(40091, Kind::Component, Action::Human, "invalid component ticket", "the third-party platform's ticket is wrong; at WeCom: the secret is wrong").for_people("Check that the platform receives WeChat's `component_verify_ticket`; at WeCom, set the right secret"),
    row(40094, Kind::Component, Action::Human, "invalid component credential", "the third-party platform's secret is wrong").for_people("Set the AppSecret of the third-party platform anew"),
    row(40097, Kind::BadRequest, Action::Never, "invalid args", "an argument is wrong"),
    row(40099, Kind::Authorisation, Action::Reauthorise, "code consumed", "the authorisation code was used before"),
    row(40125, Kind::BadCredential, Action::Human, "invalid appsecret", "the AppSecret is wrong").for_people("Set the AppSecret that the WeChat console issued last; a reset ends the old one at once"),
    row(40163, Kind::Authorisation, Action::Reauthorise, "code been used", "the authorisation code was used before"),
    row(40164, Kind::IpRefused, Action::Human, "invalid ip, not in whitelist", "the caller's address is not whitelisted; the text names the address").for_people("Add the address that WeChat names to the app's IP whitelist in the WeChat console"),
    row(40188, Kind::BadRequest, Action::Never, "invalid scope", "the scope of the authorisation is wrong"),
    row(40201, Kind::BadRequest, Action::Never, "", "`callback/check`: the address of the callback is wrong or not set"),
    row(40202, Kind::BadRequest, Action::Never, "", "`callback/check`: no such action"),
    row(40203, Kind::BadRequest, Action::Never, "", "`callback/check`: no such operator"),
    row(40226, Kind::User, Action::Never, "code blocked", "WeChat takes the user for a high risk"),
    row(40243, Kind::Account, Action::Human, "", "the AppSecret is frozen").for_people("Unfreeze the AppSecret in the WeChat console; it takes about ten minutes to act"),
    row(41001, Kind::BadRequest, Action::Never, "access_token missing", "the request has no token"),
    row(41002, Kind::BadRequest, Action::Never, "appid missing", "the request has no appid, or its body is not the JSON that `stable_token` needs"),
    row(41003, Kind::BadRequest, Action::Never, "refresh_token missing", "the request has no refresh token"),
    row(41004, Kind::BadRequest, Action::Never, "appsecret missing", "the request has no AppSecret"),
    row(41006, Kind::BadRequest, Action::Never, "media_id missing", "the request has no media id"),
    row(41008, Kind::BadRequest, Action::Never, "missing code", "the request has no authorisation code"),
    row(41009, Kind::BadRequest, Action::Never, "missing openid", "the request has no openid"),
    row(41018, Kind::Component, Action::Never, "missing component_appid", "the request has no appid of a third-party platform"),
    row(41021, Kind::Component, Action::Never, "missing component_access_token", "the request has no token of a third-party platform"),
    row(42001, Kind::InvalidToken, Action::RefreshToken, "access_token expired", "the token has expired; for a web token: refresh it, then authorise again"),
    row(42002, Kind::Authorisation, Action::Reauthorise, "refresh_token expired", "the refresh token has expired"),
    row(42003, Kind::Authorisation, Action::Reauthorise, "code expired", "the authorisation code has expired; mostly 40029 says so"),
    row(42006, Kind::Component, Action::RefreshToken, "component_access_token expired", "the third-party platform's token has expired"),
    row(42007, Kind::Authorisation, Action::Reauthorise, "access_token and refresh_token exception", "the user has ended the authorisation, by a new password for example"),
    row(43001, Kind::BadRequest, Action::Never, "require GET method", "the call must be a GET"),
    row(43002, Kind::BadRequest, Action::Never, "require POST method", "the call must be a POST"),
    row(43003, Kind::BadRequest, Action::Never, "require https", "the call must go over https"),
    row(43004, Kind::User, Action::Never, "require subscribe", "the user does not follow the app"),
    row(43101, Kind::User, Action::Never, "user refuse to accept the msg", "the user has not agreed to such messages"),
    row(43104, Kind::Account, Action::Human, "this appid does not have permission", "the app lacks the permission").for_people("Apply for the permission in the WeChat console"),
    row(44002, Kind::BadRequest, Action::Never, "empty post data", "the body is empty"),
    row(45009, Kind::Quota, Action::Wait, "reach max api daily quota limit", "the day's calls are used up").for_people("Wait for the next day in Beijing, or clear the quota (ten times a month), and see who else fetches tokens; `stable_token` has a far larger quota"),
    row(45011, Kind::Quota, Action::Retry, "api minute-quota reach limit, must slower, retry next minute", "the minute's calls are used up: again in the next minute"),
    row(45035, Kind::IpRefused, Action::Human, "access clientip is not registered, not in ip-white-list", "the caller's address is not whitelisted").for_people("Add the server's address to the app's IP whitelist in the WeChat console"),
    row(46004, Kind::User, Action::Never, "user no exist", "there is no such user"),
    row(47001, Kind::BadRequest, Action::Never, "data format error", "the body is not the JSON or XML that the call needs"),
    row(48001, Kind::Account, Action::Human, "api unauthorized", "the app has not got this API, or the token is of the wrong kind").for_people("Check in the WeChat console whether the account has this API; a web token of scope `snsapi_base` cannot read a profile"),
    row(48004, Kind::Account, Action::Human, "api forbidden for irregularities, view detail on mp.weixin.qq.com", "the API is taken away as a punishment").for_people("Read the notice in the WeChat console, and appeal there"),
    row(48006, Kind::Quota, Action::Wait, "forbid to clear quota because of reaching the limit", "the month's ten clearings are used up"),
    row(49003, Kind::BadRequest, Action::Never, "not match openid with appid", "the openid is of another app"),
    row(50001, Kind::Authorisation, Action::Reauthorise, "api unauthorized or user unauthorized", "the user has not authorised this, or the app has not got the API").for_people("If it happens with every user, check in the WeChat console whether the account has this API"),
    row(50002, Kind::User, Action::Never, "user limited", "the user is banned or limited"),
    row(50004, Kind::Account, Action::Human, "user not allow to use accesstoken, maybe for punishment", "the account may not fetch tokens").for_people("Read the notice in the WeChat console, and appeal there"),
    row(50005, Kind::User, Action::Never, "user is unsubscribed", "the user has stopped following"),
    row(50007, Kind::Account, Action::Human, "", "the account is frozen").for_people("Unfreeze the account in the WeChat console"),
    row(60020, Kind::IpRefused, Action::Human, "not allow to access from your ip", "WeCom: the caller's address is not allowed").for_people("Add the server's address to the application's trusted addresses in the WeCom console"),
    row(61003, Kind::Component, Action::Human, "component is not authorized by this account", "the account has not authorised the third-party platform").for_people("Let the account's administrator authorise the third-party platform"),
    row(61004, Kind::IpRefused, Action::Human, "access clientip is not registered", "the address is not registered for the third-party platform").for_people("Add the server's address to the platform's whitelist in the Open Platform console"),
    row(61005, Kind::Component, Action::Wait, "component ticket is expired", "the third-party platform's ticket has expired: wait for the next one or ask for it"),
    row(61006, Kind::Component, Action::Wait, "component ticket is invalid", "the third-party platform's ticket is wrong: wait for the next one or ask for it"),
    row(61007, Kind::Component, Action::Human, "api is unauthorized to component", "the account has not granted this API to the third-party platform").for_people("Let the account's administrator grant the permission set to the third-party platform"),
    row(61009, Kind::Component, Action::Reauthorise, "code is invalid", "the authorisation code of an account is wrong"),
    row(61010, Kind::Component, Action::Reauthorise, "code is expired", "the authorisation code of an account has expired"),
    row(61011, Kind::Component, Action::Human, "invalid component", "there is no such third-party platform").for_people("Check the appid of the third-party platform, and that it is published"),
    row(61014, Kind::Component, Action::Never, "must use component token", "the call needs the third-party platform's token"),
    row(61015, Kind::Component, Action::Never, "must use biz token", "the call needs an account's token"),
    row(61023, Kind::Component, Action::Reauthorise, "refresh_token is invalid", "the account's refresh token is wrong: read it from the list of authorised accounts, else the account must authorise again"),
    row(76001, Kind::BadRequest, Action::Never, "", "`rid/get`: the request id is unknown, malformed, of another account or over seven days old"),
    row(76002, Kind::BadRequest, Action::Never, "", "`rid/get`: the request id is unknown, malformed, of another account or over seven days old"),
    row(76003, Kind::BadRequest, Action::Never, "", "`rid/get`: the request id is unknown, malformed, of another account or over seven days old"),
    row(76004, Kind::BadRequest, Action::Never, "", "`rid/get`: the request id is unknown, malformed, of another account or over seven days old"),
    row(76021, Kind::BadRequest, Action::Never, "cgi_path not found", "`quota`: there is no API at this path"),
    row(76022, Kind::BadRequest, Action::Never, "cgi_path not supported", "`quota`: the path has no quota to ask for, like all of `/sns/`"),
    row(89501, Kind::IpRefused, Action::Human, "", "a risky call from this address waits for the administrator's confirmation").for_people("Let the account's administrator confirm the request in WeChat"),
    row(89503, Kind::IpRefused, Action::Human, "", "a risky call from this address needs the administrator's confirmation").for_people("Let the account's administrator confirm the request in WeChat"),
    row(89506, Kind::IpRefused, Action::Wait, "", "the administrator has refused this address: 24 hours").for_people("Talk to the account's administrator, who refused the server's address for 24 hours"),
    row(89507, Kind::IpRefused, Action::Wait, "", "the administrator has refused this address: one hour").for_people("Talk to the account's administrator, who refused the server's address for an hour"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_row_is_found() {
        assert!(TABLE.is_sorted_by(|a, b| a.code < b.code));
        for row in table() {
            assert_eq!(find(row.code), Some(row));
        }
        assert_eq!(find(0), None, "0 is success");
        assert_eq!(find(i64::MIN), None);
        assert_eq!(find(40000), None);
    }

    #[test]
    fn whoever_must_act_is_told_how() {
        for row in table() {
            let actions = [Some(row.action), row.with_secret.map(|(_, action)| action)];
            assert!(!actions.contains(&Some(Action::Human)) || row.human.is_some(), "{}", row.code);
            assert!(!row.meaning.is_empty(), "{}", row.code);
            assert!(!row.meaning.contains('|') && !row.stem.contains(['|', '`']), "{}", row.code);
            assert!(row.human.is_none_or(|text| !text.ends_with('.')), "{}", row.code);
        }
    }

    #[test]
    fn only_three_codes_mean_a_dead_global_token() {
        let dead = table().iter().filter(|row| row.kind == Kind::InvalidToken);
        assert_eq!(dead.map(|row| row.code).collect::<Vec<_>>(), [40001, 40014, 42001]);
    }

    #[test]
    fn what_asks_for_what() {
        for (action, codes) in [
            (Action::Retry, &[-1, 45011][..]),
            (Action::RefreshToken, &[40001, 40014, 42001, 42006]),
            (Action::Wait, &[45009, 48006, 61005, 61006, 89506, 89507]),
            (
                Action::Reauthorise,
                &[40029, 40030, 40099, 40163, 42002, 42003, 42007, 50001, 61009, 61010, 61023],
            ),
            (
                Action::Human,
                &[
                    40013, 40090, 40091, 40094, 40125, 40164, 40243, 43104, 45035, 48001, 48004,
                    50004, 50007, 60020, 61003, 61004, 61007, 61011, 89501, 89503,
                ],
            ),
            (
                Action::Never,
                &[
                    40002, 40003, 40031, 40032, 40035, 40066, 40097, 40188, 40201, 40202, 40203,
                    40226, 41001, 41002, 41003, 41004, 41006, 41008, 41009, 41018, 41021, 43001,
                    43002, 43003, 43004, 43101, 44002, 46004, 47001, 49003, 50002, 50005, 61014,
                    61015, 76001, 76002, 76003, 76004, 76021, 76022,
                ],
            ),
        ] {
            let rows = table().iter().filter(|row| row.action == action);
            assert_eq!(rows.map(|row| row.code).collect::<Vec<_>>(), codes, "{action:?}");
        }
        let differ = table().iter().filter_map(|row| Some((row.code, row.with_secret?)));
        let with_secret = (Kind::BadCredential, Action::Human);
        assert_eq!(differ.collect::<Vec<_>>(), [(40001, with_secret)]);
    }

    #[test]
    fn the_page_has_a_line_for_each_code() {
        let page = errors_markdown();
        assert!(
            page.starts_with("# Return codes of WeChat\n\nWhat WeChat's `errcode` values mean")
        );
        assert_eq!(page.lines().filter(|line| line.starts_with("| ")).count(), 1 + TABLE.len());
        assert!(page.contains("\n| 40164 | `invalid ip, not in whitelist` | "));
        assert!(page.contains(" | ip_refused | human | Add the address that WeChat names "));
        assert!(page.contains(" | refresh_token; with the AppSecret human | "));
    }
}
