//! What an app keeps at WeChat beside its users: media, a menu, tags, messages that were sent.

use std::collections::VecDeque;

use bytes::Bytes;
use clock::Timestamp;
use serde_json::{Value, json};

use crate::{
    answer::Failure,
    api::{Answered, Endpoint},
    exchange::Call,
    rng::Rng,
    state::App,
};

/// So much of an app's media is kept; the oldest go first.
const KEPT_BYTES: usize = 256 * 1024 * 1024;
/// So many messages of an app are kept.
const KEPT_MESSAGES: usize = 1_000;

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A PNG of one white pixel.
const PIXEL: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\x01\x01\0\x1b\xb6\xeeV\0\0\0\0IEND\xaeB`\x82";

/// A file: one that was sent, or one that is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) content_type: String,
    pub(crate) bytes: Bytes,
}

/// All that an app keeps.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// By media id, oldest first.
    media: VecDeque<(String, File)>,
    menu: Option<Value>,
    tags: Vec<String>,
    /// Newest last.
    messages: VecDeque<Value>,
}

impl Content {
    /// The messages that were sent to users, oldest first.
    pub(crate) fn messages(&self) -> Vec<Value> {
        self.messages.iter().cloned().collect()
    }

    fn keep(&mut self, id: String, file: File) {
        self.media.push_back((id, file));
        let size = |media: &VecDeque<(String, File)>| {
            media.iter().map(|(_, file)| file.bytes.len()).sum::<usize>()
        };
        while self.media.len() > 1 && size(&self.media) > KEPT_BYTES {
            self.media.pop_front();
        }
    }
}

/// Answers a call that is about content; its token and quota are checked.
pub(crate) fn answer(
    app: &mut App,
    endpoint: Endpoint,
    call: &Call,
    now: Timestamp,
    rng: &mut Rng,
) -> Result<Answered, Failure> {
    let json =
        || call.json.as_ref().filter(|json| json.is_object()).ok_or_else(|| Failure::new(47001));
    let done = || Ok(json!({ "errcode": 0, "errmsg": "ok" }).into());
    match endpoint {
        Endpoint::MediaUpload => {
            let Some(kind @ ("image" | "voice" | "video" | "thumb")) = call.query("type") else {
                return Err(Failure::new(40004));
            };
            let file = call.file.clone().ok_or_else(|| Failure::new(41005))?;
            let id = rng.text(LETTERS, 64);
            app.content.keep(id.clone(), file);
            let answer = json!({ "type": kind, "media_id": id, "created_at": now.as_secs() });
            Ok(answer.into())
        }
        Endpoint::MediaGet => {
            let wanted = call.query("media_id").ok_or_else(|| Failure::new(41006))?;
            let found = app.content.media.iter().find(|(id, _)| id == wanted);
            let (_, file) = found.ok_or_else(|| Failure::new(40007))?;
            Ok(Answered::File(file.clone()))
        }
        Endpoint::CustomSend => {
            let message = json()?;
            let to = message["touser"].as_str().unwrap_or_default();
            if !app.users.contains_key(to) {
                return Err(Failure::new(40003));
            }
            app.content.messages.push_back(message.clone());
            if app.content.messages.len() > KEPT_MESSAGES {
                app.content.messages.pop_front();
            }
            done()
        }
        Endpoint::MenuCreate => {
            let menu = json()?;
            if !menu["button"].is_array() {
                return Err(Failure::new(40016));
            }
            app.content.menu = Some(menu.clone());
            done()
        }
        Endpoint::MenuGet => {
            let menu = app.content.menu.as_ref().ok_or_else(|| Failure::new(46003))?;
            Ok(json!({ "menu": menu }).into())
        }
        Endpoint::TagsCreate => {
            let name = json()?["tag"]["name"].as_str().unwrap_or_default().to_owned();
            if name.is_empty() {
                return Err(Failure::new(47001));
            }
            app.content.tags.push(name.clone());
            Ok(json!({ "tag": { "id": 99 + app.content.tags.len(), "name": name } }).into())
        }
        Endpoint::TagsGet => {
            let tags = app.content.tags.iter().enumerate();
            let tags: Vec<_> = tags
                .map(|(at, name)| json!({ "id": 100 + at, "name": name, "count": 0 }))
                .collect();
            Ok(json!({ "tags": tags }).into())
        }
        Endpoint::UpdateRemark => {
            let change = json()?;
            let openid = change["openid"].as_str().unwrap_or_default();
            let user = app.users.get_mut(openid).ok_or_else(|| Failure::new(40003))?;
            change["remark"].as_str().unwrap_or_default().clone_into(&mut user.remark);
            done()
        }
        Endpoint::WxaCode => {
            if json()?["scene"].as_str().unwrap_or_default().is_empty() {
                return Err(Failure::new(40129));
            }
            Ok(Answered::File(File {
                name: "code.png".to_owned(),
                content_type: "image/png".to_owned(),
                bytes: Bytes::from_static(PIXEL),
            }))
        }
        _ => Err(Failure::new(40066)),
    }
}

/// A part of a file.
pub(crate) struct Part {
    /// Where it begins.
    pub(crate) first: usize,
    pub(crate) bytes: Bytes,
    /// No part was asked for.
    pub(crate) whole: bool,
}

/// The part of a file that a `Range` asks for. `None`: there is no such part. A range of another
/// form, or several, ask for the whole.
pub(crate) fn part(bytes: &Bytes, range: Option<&str>) -> Option<Part> {
    let whole = || Some(Part { first: 0, bytes: bytes.clone(), whole: true });
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else { return whole() };
    let Some((first, last)) = range.split_once('-') else { return whole() };
    let length = bytes.len();
    let end = length.saturating_sub(1);
    let (first, last) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(end)),
        (Ok(first), Err(_)) if last.is_empty() => (first, end),
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => (length.saturating_sub(count), end),
        _ => return whole(),
    };
    (first < length).then(|| Part { first, bytes: bytes.slice(first..=last), whole: false })
}

/// The file that a multipart body holds, in the field that WeChat wants it in.
pub(crate) async fn file_of(content_type: Option<&str>, body: Bytes) -> Option<File> {
    let boundary = multer::parse_boundary(content_type?).ok()?;
    let whole = futures_util::stream::once(async move { Ok::<_, std::io::Error>(body) });
    let mut parts = multer::Multipart::new(whole, boundary);
    while let Ok(Some(part)) = parts.next_field().await {
        if part.name() != Some("media") {
            continue;
        }
        let name = part.file_name()?.to_owned();
        let content_type = part
            .content_type()
            .map_or_else(|| "application/octet-stream".to_owned(), ToString::to_string);
        return Some(File { name, content_type, bytes: part.bytes().await.ok()? });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_file() {
        let bytes = Bytes::from_static(b"0123456789");
        let of = |range| part(&bytes, Some(range)).map(|part| (part.first, part.bytes.to_vec()));
        assert_eq!(of("bytes=2-4"), Some((2, b"234".to_vec())));
        assert_eq!(of("bytes=8-99"), Some((8, b"89".to_vec())));
        assert_eq!(of("bytes=7-"), Some((7, b"789".to_vec())));
        assert_eq!(of("bytes=-3"), Some((7, b"789".to_vec())));
        assert_eq!(of("bytes=10-"), None);
        for whole in ["", "bytes=", "bytes=a-b", "bytes=4-2", "bytes=0-1,3-4", "lines=0-1"] {
            assert_eq!(of(whole), Some((0, bytes.to_vec())), "{whole}");
        }
    }
}
