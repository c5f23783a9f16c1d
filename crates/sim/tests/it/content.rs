//! Media, menus, tags, messages: what an app keeps at WeChat.

use serde_json::json;
use sim::{Fault, FaultKind, UserSpec};

use crate::harness::{APP, Answer, World, ask_as};

/// Sends a file as SDKs do.
async fn upload(world: &World, target: &str, field: &str, bytes: &[u8]) -> Answer {
    let mut body = format!(
        "--b0undary\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nx\r\n--b0undary\r\n\
         Content-Disposition: form-data; name=\"{field}\"; filename=\"a.png\"\r\n\
         Content-Type: image/png\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(bytes);
    body.extend_from_slice(b"\r\n--b0undary--\r\n");
    let content_type = ("content-type", "multipart/form-data; boundary=b0undary");
    ask_as(world.api, "POST", target, &[content_type], &body).await.unwrap()
}

async fn download(world: &World, target: &str, range: &str) -> Answer {
    let headers = [("range", range)];
    let headers = if range.is_empty() { &[][..] } else { &headers };
    ask_as(world.api, "GET", target, headers, b"").await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn media_come_back_byte_for_byte() {
    let world = World::new().await;
    let token = world.classic().await;
    let picture: Vec<u8> = (0..200_000u32).map(|at| (at % 253) as u8).collect();
    let target = format!("/cgi-bin/media/upload?access_token={token}&type=image");
    let kept = upload(&world, &target, "media", &picture).await.json();
    assert_eq!(kept["type"], "image", "{kept}");
    assert!(kept["created_at"].is_u64());
    let id = kept["media_id"].as_str().unwrap();
    let target = format!("/cgi-bin/media/get?access_token={token}&media_id={id}");
    let whole = download(&world, &target, "").await;
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("image/png")));
    assert_eq!(whole.header("content-disposition"), Some("attachment; filename=\"a.png\""));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert!(whole.body == picture);
    let part = download(&world, &target, "bytes=10-19").await;
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 10-19/200000")));
    assert_eq!(part.body, picture[10..20]);
    let all = download(&world, &target, "bytes=0-").await;
    assert_eq!((all.status, all.header("content-range")), (206, Some("bytes 0-199999/200000")));
    world.sim.set_fault(Fault::new(FaultKind::EmptyBody {}).on("/cgi-bin/media/get").times(1));
    assert!(download(&world, &target, "").await.body.is_empty());
    world.sim.set_fault(Fault::new(FaultKind::TruncatedBody {}).on("/cgi-bin/media/get").times(1));
    assert_eq!(download(&world, &target, "").await.body.len(), 100_000);
    let none = download(&world, &target, "bytes=200000-").await;
    assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */200000")));
}

#[tokio::test(start_paused = true)]
async fn a_video_of_a_hundred_megabytes_is_taken() {
    let world = World::new().await;
    let token = world.classic().await;
    let video = vec![7; 100 * 1000 * 1000];
    let target = format!("/cgi-bin/media/upload?access_token={token}&type=video");
    let kept = upload(&world, &target, "media", &video).await.json();
    let id = kept["media_id"].as_str().unwrap();
    let target = format!("/cgi-bin/media/get?access_token={token}&media_id={id}");
    assert!(download(&world, &target, "").await.body == video);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_media() {
    let world = World::new().await;
    let token = world.classic().await;
    let upload_to = |kind: &str| format!("/cgi-bin/media/upload?access_token={token}&type={kind}");
    assert_eq!(upload(&world, &upload_to("film"), "media", b"x").await.errcode(), 40004);
    assert_eq!(upload(&world, &upload_to("image"), "file", b"x").await.errcode(), 41005);
    assert_eq!(world.post(&upload_to("image"), "{}").await.errcode(), 41005);
    assert_eq!(world.get(&upload_to("image")).await.errcode(), 43002);
    let get = |id: &str| format!("/cgi-bin/media/get?access_token={token}&media_id={id}");
    assert_eq!(world.get(&get("nothing")).await.errcode(), 40007);
    assert_eq!(world.get(&get("")).await.errcode(), 41006);
    let stranger = "/cgi-bin/media/upload?access_token=nobody&type=image";
    assert_eq!(upload(&world, stranger, "media", b"x").await.errcode(), 40001);
}

#[tokio::test(start_paused = true)]
async fn menus_tags_remarks_and_codes() {
    let world = World::new().await;
    let token = world.classic().await;
    world.sim.add_user(UserSpec::new(APP, "o1")).unwrap();
    let at = |path: &str| format!("{path}?access_token={token}");
    assert_eq!(world.get(&at("/cgi-bin/menu/get")).await.errcode(), 46003);
    let menu = json!({ "button": [{ "type": "click", "name": "菜单", "key": "V1" }] });
    assert_eq!(world.post(&at("/cgi-bin/menu/create"), &menu.to_string()).await.errcode(), 0);
    assert_eq!(world.get(&at("/cgi-bin/menu/get")).await.json(), json!({ "menu": menu }));
    assert_eq!(world.post(&at("/cgi-bin/menu/create"), "{}").await.errcode(), 40016);

    let tag = world.post(&at("/cgi-bin/tags/create"), r#"{"tag":{"name":"广东"}}"#).await.json();
    assert_eq!(tag, json!({ "tag": { "id": 100, "name": "广东" } }));
    let tags = world.get(&at("/cgi-bin/tags/get")).await.json();
    assert_eq!(tags["tags"][0]["name"], "广东");

    let remark = |openid: &str| json!({ "openid": openid, "remark": "常客" }).to_string();
    let path = at("/cgi-bin/user/info/updateremark");
    assert_eq!(world.post(&path, &remark("o1")).await.errcode(), 0);
    assert_eq!(world.post(&path, &remark("o2")).await.errcode(), 40003);
    assert_eq!(world.sim.users(Some(APP))[0].remark, "常客");

    let code = world.post(&at("/wxa/getwxacodeunlimit"), r#"{"scene":"a=1"}"#).await;
    assert_eq!(code.header("content-type"), Some("image/png"));
    assert!(code.body.starts_with(b"\x89PNG\r\n"));
    assert_eq!(world.post(&at("/wxa/getwxacodeunlimit"), "{}").await.errcode(), 40129);
    assert_eq!(world.post(&at("/wxa/getwxacodeunlimit"), "x").await.errcode(), 47001);
}

#[tokio::test(start_paused = true)]
async fn messages_are_kept_as_they_came() {
    let world = World::new().await;
    let token = world.classic().await;
    world.sim.add_user(UserSpec::new(APP, "o1")).unwrap();
    let target = format!("/cgi-bin/message/custom/send?access_token={token}");
    let to = |openid: &str| json!({ "touser": openid, "msgtype": "text", "text": { "content": "你好 🌏" } });
    assert_eq!(world.post(&target, &to("o1").to_string()).await.errcode(), 0);
    assert_eq!(world.post(&target, &to("o2").to_string()).await.errcode(), 40003);
    assert_eq!(world.sim.messages(APP).unwrap(), [to("o1")]);
    let told = world.command("GET", &format!("/sim/messages?appid={APP}"), "").await;
    assert_eq!(told.json(), json!({ "messages": [to("o1")] }));
    assert_eq!(world.command("GET", "/sim/messages", "").await.status, 400);
    assert_eq!(world.command("GET", "/sim/messages?appid=wx1", "").await.status, 404);
    world.sim.reset();
    assert!(world.sim.messages(APP).unwrap().is_empty());
}
