//! The look of a page: two languages, escaping, headers.

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use percent_encoding::{CONTROLS, utf8_percent_encode};

use super::Visit;

/// A language of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Chinese,
    English,
}

impl Language {
    /// What `lang` says, or else the first of the browser's languages that is one of these.
    pub(super) fn of(visit: &Visit) -> Self {
        let of_tag = |tag: &str| match tag.trim().get(..2)?.to_ascii_lowercase().as_str() {
            "zh" | "cn" => Some(Self::Chinese),
            "en" => Some(Self::English),
            _ => None,
        };
        let accepted =
            || visit.header(header::ACCEPT_LANGUAGE.as_str())?.split(',').find_map(of_tag);
        visit.query("lang").and_then(of_tag).or_else(accepted).unwrap_or(Self::Chinese)
    }

    /// The text that is in this language.
    pub(super) const fn pick<'a>(self, chinese: &'a str, english: &'a str) -> &'a str {
        match self {
            Self::Chinese => chinese,
            Self::English => english,
        }
    }

    const fn tag(self) -> &'static str {
        self.pick("zh-CN", "en")
    }
}

/// A page. What it is made of is HTML already.
pub(super) struct Page<'a> {
    pub(super) language: Language,
    pub(super) title: &'a str,
    pub(super) body: String,
    /// A script, and the data that it reads off its own element.
    pub(super) script: Option<(&'static str, Vec<(&'static str, &'a str)>)>,
    /// Where a browser without scripts goes after two seconds.
    pub(super) refresh: Option<&'a str>,
}

impl Page<'_> {
    /// The page as an answer. `nonce` lets its own style and script pass.
    pub(super) fn respond(self, status: StatusCode, nonce: &str) -> Response<String> {
        let title = escape(self.title);
        let mut head = format!(
            "<!doctype html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style nonce=\"{nonce}\">{STYLE}</style>\n",
            self.language.tag()
        );
        if let Some(target) = self.refresh {
            let target = escape(target);
            // Writing to a string does not fail.
            let _ = writeln!(
                head,
                "<noscript><meta http-equiv=\"refresh\" content=\"2;url={target}\"></noscript>"
            );
        }
        let mut end = String::new();
        if let Some((script, data)) = self.script {
            let data = data.iter().fold(String::new(), |mut data, (name, value)| {
                let _ = write!(data, " data-{name}=\"{}\"", escape(value));
                data
            });
            let _ = writeln!(end, "<script nonce=\"{nonce}\"{data}>{script}</script>");
        }
        let simulated = self
            .language
            .pick("这是模拟的微信，不是真的", "This is a simulated WeChat, not the real one");
        let body = self.body;
        let text = format!(
            "{head}</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n\
             <footer>{simulated}</footer>\n{end}</body>\n</html>\n"
        );
        let mut response = Response::new(text);
        *response.status_mut() = status;
        // Forms may post anywhere: a browser would hold all that follows upon one to `form-action`,
        // and the app is free to send its visitors on.
        let policy = format!(
            "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; \
             connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
        );
        put(&mut response, header::CONTENT_TYPE, "text/html; charset=utf-8");
        put(&mut response, header::CONTENT_SECURITY_POLICY, &policy);
        guard(&mut response);
        response
    }
}

/// Sends a browser on.
pub(super) fn redirect(target: &str) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::FOUND;
    put(&mut response, header::LOCATION, &address(target));
    guard(&mut response);
    response
}

/// A JSON answer for a script of ours.
pub(super) fn json(text: String) -> Response<String> {
    let mut response = Response::new(text);
    put(&mut response, header::CONTENT_TYPE, "application/json");
    guard(&mut response);
    response
}

/// An address as it may stand in a header.
pub(super) fn address(text: &str) -> String {
    utf8_percent_encode(text, CONTROLS).to_string()
}

/// Sets a header whose value can be one.
pub(super) fn put(response: &mut Response<String>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().append(name, value);
    }
}

fn guard(response: &mut Response<String>) {
    put(response, header::CACHE_CONTROL, "no-store");
    put(response, header::REFERRER_POLICY, "no-referrer");
    put(response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
}

/// Text as it may stand in HTML, in an attribute too.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            control if control.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            other => out.push(other),
        }
    }
    out
}

const STYLE: &str = "\
body{margin:0;font:16px/1.6 system-ui,sans-serif;color:#111;background:#ededed}\
main{max-width:26rem;margin:2rem auto;padding:1.5rem;background:#fff;border-radius:8px}\
h1{margin-top:0;font-size:1.2rem}\
footer{text-align:center;color:#666;font-size:.85rem;padding-bottom:2rem}\
label{display:block;padding:.4rem 0}\
button{font:inherit;padding:.5rem 1.5rem;margin:1rem .5rem 0 0;border:1px solid #bbb;\
border-radius:4px;background:#fff;color:#111;cursor:pointer}\
button.allow{background:#07853f;border-color:#07853f;color:#fff}\
svg{display:block;width:14rem;height:14rem;margin:0 auto 1rem}\
code{word-break:break-all}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_from_a_text() {
        assert_eq!(
            escape("a&<b>\"'\u{0}\n小明😀"),
            "a&amp;&lt;b&gt;&quot;&#39;\u{fffd}\u{fffd}小明😀"
        );
    }
}
