//! Answers as WeChat words them: errors with their text, rid and suffix, and HTTP dates.

use std::{borrow::Cow, net::IpAddr};

use clock::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{quota::civil, rng::Rng};

/// The content type of `/cgi-bin/*`; the parameter really is called `encoding`.
pub(crate) const CGI_BIN_TYPE: &str = "application/json; encoding=utf-8";

/// The content type of `/sns/*`.
pub(crate) const SNS_TYPE: &str = "text/plain";

const STABLE_HINT: &str = ", could get access_token by getStableAccessToken, more details at \
                           https://mmbizurl.cn/s/JtxxFh33r";

/// How an error text ends. WeChat changed it several times, and some calls still use older ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suffix {
    /// `TEXT rid: …`, as `/cgi-bin/*` today.
    Rid,
    /// `TEXT, rid: …`, as `/sns/*` today.
    CommaRid,
    /// `TEXT hint: […] rid: …`, as some user calls today.
    HintRid,
    /// `TEXT\n, rid: …`, with a line break; rare.
    NewlineRid,
    /// `TEXT hint: […]`, as `/cgi-bin/*` before 2020.
    Hint,
    /// `TEXT hints: […]`, as `/cgi-bin/*` before 2020.
    Hints,
    /// `TEXT, hints: [ req_id: … ]`, as `/sns/*` up to 2021.
    ReqId,
    /// `TEXT, hint: […], from ip: …, more info at …`, as WeCom.
    WeCom,
    /// `TEXT` alone.
    Bare,
}

/// A refused call: an errcode and its text.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: i64,
    text: Cow<'static, str>,
    stable_hint: bool,
    suffix: Suffix,
}

impl Failure {
    /// The failure of a code, in the words that WeChat has for it.
    pub(crate) fn new(code: i64) -> Self {
        let suffix = match code {
            40003 | 40032 | 47001 => Suffix::HintRid,
            _ => Suffix::Rid,
        };
        let stable_hint = matches!(code, 40001 | 45009);
        Self { code, text: text_of(code).into(), stable_hint, suffix }
    }

    /// A token call with a wrong secret, which never advises another token call.
    pub(crate) fn wrong_secret(code: i64) -> Self {
        Self { stable_hint: false, ..Self::new(code) }
    }

    /// 40164 names the caller's address.
    pub(crate) fn refused_ip(code: i64, ip: IpAddr) -> Self {
        let mut failure = Self::new(code);
        if code == 40164 {
            let mapped = match ip {
                IpAddr::V4(v4) => format!("::ffff:{v4}"),
                IpAddr::V6(v6) => v6.to_string(),
            };
            failure.text = format!("invalid ip {ip} ipv6 {mapped}, not in whitelist").into();
        }
        failure
    }

    /// The failure with another text, to which nothing is added but the ending.
    pub(crate) fn with_text(self, text: String) -> Self {
        Self { text: text.into(), stable_hint: false, ..self }
    }

    /// The failure as calls of `/sns/*` word it.
    pub(crate) fn of_sns(self) -> Self {
        Self { stable_hint: false, suffix: Suffix::CommaRid, ..self }
    }

    /// The failure with another ending.
    pub(crate) fn ending(self, suffix: Suffix) -> Self {
        Self { suffix, ..self }
    }

    /// The body, and the rid when its text holds one.
    pub(crate) fn body(&self, at: Timestamp, ip: IpAddr, rng: &mut Rng) -> (Value, Option<String>) {
        let text = &self.text;
        let today = matches!(
            self.suffix,
            Suffix::Rid | Suffix::CommaRid | Suffix::HintRid | Suffix::NewlineRid
        );
        // The advice is younger than the old endings.
        let advice = if self.stable_hint && today { STABLE_HINT } else { "" };
        let rid = rid(at, rng);
        let short = hint(rng, 16);
        let message = match self.suffix {
            Suffix::Rid => format!("{text}{advice} rid: {rid}"),
            Suffix::CommaRid => format!("{text}{advice}, rid: {rid}"),
            Suffix::HintRid => format!("{text}{advice} hint: [{short}] rid: {rid}"),
            Suffix::NewlineRid => format!("{text}{advice}\n, rid: {rid}"),
            Suffix::Hint => format!("{text} hint: [{short}!]"),
            Suffix::Hints => format!("{text} hints: [{short}!]"),
            Suffix::ReqId => format!("{text}, hints: [ req_id: {short} ]"),
            Suffix::WeCom => {
                let digits = format!("{:010}{:014}", at.as_secs().max(0), rng.bits() >> 18);
                let code = self.code;
                format!(
                    "{text}, hint: [{digits}], from ip: {ip}, more info at \
                     https://open.work.weixin.qq.com/devtool/query?e={code}"
                )
            }
            Suffix::Bare => text.to_string(),
        };
        let body = json!({ "errcode": self.code, "errmsg": message });
        (body, today.then_some(rid))
    }
}

/// `hhhhhhhh-hhhhhhhh-hhhhhhhh`: the second of the call, and two numbers below 2^31.
pub(crate) fn rid(at: Timestamp, rng: &mut Rng) -> String {
    let second = u32::try_from(at.as_secs()).unwrap_or(0);
    format!("{second:08x}-{:08x}-{:08x}", rng.bits31(), rng.bits31())
}

fn hint(rng: &mut Rng, length: usize) -> String {
    rng.text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.", length)
}

/// The text of a code, without its ending.
const fn text_of(code: i64) -> &'static str {
    match code {
        -1 => "system error",
        40001 => "invalid credential, access_token is invalid or not latest",
        40002 => "invalid grant_type",
        40003 => "invalid openid",
        40004 => "invalid media type",
        40007 => "invalid media_id",
        40016 => "invalid button size",
        40013 => "invalid appid",
        40014 => "invalid access_token",
        40029 => "invalid code",
        40030 => "invalid refresh_token",
        40032 => "invalid openid list size",
        40066 => "invalid url",
        40090 => "bad client ip",
        40097 => "invalid args",
        40129 => "invalid scene",
        41005 => "media data missing",
        41006 => "media_id missing",
        46003 => "menu no exist",
        40125 => "invalid appsecret",
        40163 => "code been used",
        40226 => "code blocked",
        40243 => "appsecret is frozen",
        41001 => "access_token missing",
        41002 => "appid missing",
        41003 => "refresh_token missing",
        41004 => "appsecret missing",
        41008 => "missing code",
        41009 => "missing openid",
        42001 => "access_token expired",
        42002 => "refresh_token expired",
        42003 => "code expired",
        42007 => "access_token and refresh_token exception",
        43001 => "require GET method",
        43002 => "require POST method",
        44002 => "empty post data",
        45009 => "reach max api daily quota limit",
        45011 => "api minute-quota reach limit, must slower, retry next minute",
        45035 => "access clientip is not registered, not in ip-white-list",
        47001 => "data format error",
        48001 => "api unauthorized",
        48004 => "api forbidden for irregularities, view detail on mp.weixin.qq.com",
        48006 => "forbid to clear quota because of reaching the limit",
        50004 => "user not allow to use accesstoken, maybe for punishment",
        50007 => "account is frozen",
        61004 => "access clientip is not registered",
        76021 => "cgi_path not found, please check",
        76022 => "could not use this cgi_path, no permission",
        89501 => "this ip is waiting for the confirmation of the administrator",
        89503 => "this ip needs the confirmation of the administrator",
        89506 => "this ip was refused by the administrator, do not try within 24 hours",
        89507 => "this ip was refused by the administrator, do not try within 1 hour",
        _ => "unknown error",
    }
}

/// The value of a `Date` header.
pub(crate) fn http_date(at: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // The years that the format can write.
    let secs = at.as_secs().clamp(0, 253_402_300_799);
    let (day, second) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let (year, month, day_of_month) = civil(day);
    format!(
        "{}, {day_of_month:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[day.rem_euclid(7) as usize],
        MONTHS[(month - 1) as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(failure: &Failure) -> String {
        let at = Timestamp::from_secs(0x6aac_005a);
        let ip = [116, 25, 45, 231].into();
        let (body, rid) = failure.body(at, ip, &mut Rng::new(1, 1));
        let message = body["errmsg"].as_str().expect("a text").to_owned();
        rid.map_or(message.clone(), |rid| message.replace(&rid, "RID"))
    }

    #[test]
    fn errors_read_as_today() {
        assert_eq!(text(&Failure::new(40013)), "invalid appid rid: RID");
        assert_eq!(
            text(&Failure::new(40001)),
            "invalid credential, access_token is invalid or not latest, could get access_token by \
             getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: RID"
        );
        assert_eq!(
            text(&Failure::refused_ip(40164, [116, 25, 45, 231].into())),
            "invalid ip 116.25.45.231 ipv6 ::ffff:116.25.45.231, not in whitelist rid: RID"
        );
    }

    #[test]
    fn errors_end_in_every_way() {
        let end = |suffix| text(&Failure::new(40029).with_text("X".into()).ending(suffix));
        assert_eq!(end(Suffix::CommaRid), "X, rid: RID");
        assert_eq!(end(Suffix::NewlineRid), "X\n, rid: RID");
        assert_eq!(end(Suffix::Bare), "X");
        assert!(end(Suffix::HintRid).starts_with("X hint: ["), "{}", end(Suffix::HintRid));
        assert!(end(Suffix::HintRid).ends_with("] rid: RID"));
        assert!(end(Suffix::Hint).starts_with("X hint: ["));
        assert!(end(Suffix::Hints).starts_with("X hints: ["));
        assert!(end(Suffix::ReqId).starts_with("X, hints: [ req_id: "));
        assert!(end(Suffix::WeCom).contains("], from ip: 116.25.45.231, more info at https://"));
    }

    #[test]
    fn a_rid_begins_with_its_second() {
        let rid = rid(Timestamp::from_secs(0x65ec_c868), &mut Rng::new(7, 7));
        assert!(rid.starts_with("65ecc868-"), "{rid}");
        assert_eq!(rid.len(), 26);
        for group in rid.split('-') {
            assert!(u32::from_str_radix(group, 16).expect("hex") < 1 << 31);
        }
    }

    #[test]
    fn dates_are_written_as_http_does() {
        let at = Timestamp::from_secs(0x65ec_c868);
        assert_eq!(http_date(at), "Sat, 09 Mar 2024 20:36:56 GMT");
    }
}
