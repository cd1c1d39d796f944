"""The page itself: Gradio's components, and which of them calls what. Nothing here is decided or made into HTML."""

import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr

from xhs_pipeline.appeals.store import MAX_NOTE_SENT, AppealStore
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.fields import MAX_IMAGES
from xhs_pipeline.serve.auth import CLIENT, REVIEWER, Tokens
from xhs_pipeline.serve.demo import desk, render, words
from xhs_pipeline.serve.demo.review import Desk, Review
from xhs_pipeline.serve.judging import Judging
from xhs_pipeline.serve.limits import MB, Limits

FONT = ("PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "system-ui", "sans-serif")  # no font is fetched
# no handler is offered as an API: those routes would be a second way into the service; without Gradio's queue each is answered
# within its request, so that the limits on requests hold for as long as their bytes are in memory
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "queue": False}


def theme() -> gr.themes.Base:
    return gr.themes.Default(primary_hue="red", neutral_hue="slate", font=FONT, font_mono=("ui-monospace", "monospace"))


def page(judging: Callable[[], Judging], store: AppealStore, tokens: Tokens, limits: Limits) -> gr.Blocks:
    """The page with both tabs; `judging` is asked for when a post comes, since it lives as long as the service runs."""
    with gr.Blocks(title="内容审核演示", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML('<h1 class="x-h1">内容审核演示</h1>', apply_default_css=False)
        with gr.Tabs(elem_id="x-tabs"):
            with gr.Tab("判定与申诉", id="judge"):
                _judge_tab(judging, store, tokens, limits)
            with gr.Tab("复核", id="review"):
                _review_tab(Review(store, tokens), store.policy, tokens.on(REVIEWER))
    return blocks


def _judge_tab(judging: Callable[[], Judging], store: AppealStore, tokens: Tokens, limits: Limits) -> None:
    decision, appellant = gr.State(None), gr.State(None)
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            title = gr.Textbox(label="标题", max_lines=2, elem_id="x-title")
            body = gr.Textbox(label="正文", lines=8, max_lines=20, placeholder="粘贴帖子的正文", elem_id="x-body")
            images = gr.HTML([], html_template=_pictures(limits), js_on_load=render.part("pictures.js"),
                             apply_default_css=False, elem_id="x-pictures")  # fmt: skip
            post_id = gr.Textbox(label="帖子编号（可不填）", max_lines=1, elem_id="x-post-id",
                                 info="填写数据里已有的编号，裁定后才能用于重新训练")  # fmt: skip
            go = gr.Button("判定", variant="primary", elem_id="x-judge")
        with gr.Column(scale=6, min_width=320):
            result = _html(render.message("填写帖子，然后按“判定”。"), "x-result")
            with gr.Group(visible=False, elem_id="x-appeal-box") as appeal_box:
                note = gr.Textbox(
                    label="不同意这个决定？申诉理由（可不填；保存前会去标识）", lines=2, max_length=MAX_NOTE_SENT,
                    elem_id="x-appeal-note",
                )  # fmt: skip
                appeal = gr.Button("申诉", elem_id="x-appeal")
            told = _html("", "x-appeal-told")

    def barred(request: gr.Request) -> bool:
        """Whether somebody is logged in as a reviewer."""
        return tokens.on(CLIENT) and request.username not in tokens.of_role[CLIENT].values()

    async def judge(title: str, body: str, post_id: str, images: Any, request: gr.Request) -> tuple[Any, ...]:
        if barred(request):
            return render.message(words.CLIENTS_ONLY, "bad"), None, gr.update(visible=False), "", ""
        made = await desk.judge(judging(), store, limits, title, body, post_id, images)
        return made.html, made.decision_id, gr.update(visible=made.decision_id is not None), "", ""

    def file_appeal(decision_id: str | None, known: str | None, note: str, request: gr.Request) -> tuple[Any, ...]:
        if barred(request):
            return render.message(words.CLIENTS_ONLY, "bad"), known, gr.skip()
        who = request.username or known or f"demo-{secrets.token_hex(16)}"
        said, taken = desk.appeal(store, decision_id, who, note)
        return said, who, gr.update(visible=not taken)

    go.click(judge, [title, body, post_id, images], [result, decision, appeal_box, note, told], **QUIET)
    appeal.click(file_appeal, [decision, appellant, note], [told, appellant, appeal_box], **QUIET)


def _review_tab(review: Review, policy: Policy, on: bool) -> None:
    shown = gr.State(None)
    categories = [name for name in policy.category_names if name != policy.normal_category]
    with gr.Row(visible=on, elem_id="x-login"):
        token = gr.Textbox(label="审核员令牌", type="password", max_lines=1, scale=4, elem_id="x-token")
        enter = gr.Button("进入", variant="primary", scale=1, min_width=90, elem_id="x-enter")
    notice = _html("" if on else render.message(words.REVIEW_OFF), "x-notice")
    with gr.Column(visible=False, elem_id="x-work") as work:
        _html(render.part("keys.html").format(last=len(policy.verdicts)), "x-keys")
        with gr.Row():
            with gr.Column(scale=3, min_width=260):
                queue = gr.Radio([], label="待复核案件（最早的在前）", elem_id="x-queue")
                refresh = gr.Button("刷新", size="sm", elem_id="x-refresh")
            with gr.Column(scale=5, min_width=320):
                post = _html("", "x-case-post")
            with gr.Column(scale=5, min_width=320):
                answer = _html("", "x-case-answer")
                triage = gr.Button("分诊：这是一条独立的申诉", visible=False, elem_id="x-triage")
                verdict = gr.Radio([(f"{n} {v.label}", v.id) for n, v in enumerate(policy.verdicts, start=1)],
                                   label="您的结论", elem_id="x-verdict")  # fmt: skip
                category = gr.Radio(categories, label="违规类别（通过时不用选）", elem_id="x-category")
                note = gr.Textbox(
                    label="备注（可不填；保存前会去标识）", lines=2, max_length=MAX_NOTE_SENT, elem_id="x-note"
                )
                vote = gr.Button("提交结论", variant="primary", elem_id="x-vote")

    outputs = [notice, work, queue, post, answer, triage, verdict, category, note, shown]

    def opened(made: Desk) -> tuple[Any, ...]:
        view, kept = made.case, gr.skip()
        listed = {case_id for _, case_id in made.queue}
        category_said = view.state.first[1] if view and view.state.first[1] in categories else None
        return (
            made.notice,
            gr.update(visible=made.allowed),
            gr.update(choices=list(made.queue), value=made.case_id if made.case_id in listed else None),
            render.case_post(view) if view else "",
            render.case_answer(view, policy) if view else "",
            gr.update(visible=bool(view and view.state.waits_for_triage)),
            None if made.fresh else kept,
            category_said if made.fresh else kept,
            "" if made.fresh else kept,
            made.case_id,
        )

    def again(token: str, case_id: str | None) -> tuple[Any, ...]:
        return opened(review.open(token, case_id))

    def choose(token: str, case_id: str | None) -> tuple[Any, ...]:
        made = list(again(token, case_id))
        made[outputs.index(queue)] = gr.skip()  # whoever goes on through the queue meanwhile is not thrown back
        return tuple(made)

    def triaged(token: str, case_id: str | None, note: str) -> tuple[Any, ...]:
        return opened(review.triage(token, case_id, note))

    def voted(token: str, case_id: str | None, chosen: str | None, *said: Any) -> tuple[Any, ...]:
        if chosen not in (None, case_id):  # another case is chosen, and not yet on the screen
            return opened(review.open(token, chosen, render.message("案件刚刚打开，请看过再提交。")))
        return opened(review.vote(token, case_id, *said))

    for begin in (enter.click, token.submit):
        begin(lambda token: opened(review.open(token)), [token], outputs, **QUIET)
    refresh.click(again, [token, shown], outputs, **QUIET)
    queue.input(choose, [token, queue], outputs, trigger_mode="always_last", **QUIET)
    triage.click(triaged, [token, shown, note], outputs, **QUIET)
    vote.click(voted, [token, shown, queue, verdict, category, note], outputs, **QUIET)


def _html(value: str, elem_id: str) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)


def _pictures(limits: Limits) -> str:
    """The field for images. They travel in base64 in the request for a decision, so no file is ever written, or served."""
    room = limits.body_mb * MB * 3 // 4 - MB
    return render.part("pictures.html").format(most=MAX_IMAGES, bytes=room, mb=room // MB)
