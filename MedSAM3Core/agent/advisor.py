"""A language model as the judge: prompts out, answers in, and a way on when no usable answer comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from MedSAM3Core.agent.chat import ChatModel, Reply
from MedSAM3Core.agent.facts import Judgement, Plan, Verdict
from MedSAM3Core.agent.judging import Look, Request
from MedSAM3Core.agent.planning import plan_by_words
from MedSAM3Core.agent.replies import read_json, read_judgement, read_plan
from MedSAM3Core.agent.wording import Prompt, judge_prompt, plan_prompt
from MedSAM3Core.errors import EndpointError
from MedSAM3Core.progress import CancelToken

T = TypeVar("T")

REMARK = "Your last answer could not be used: {why} Answer again with one JSON object of the given form only."


class LanguageModelJudge:
    """Plans and judges with a chat model.

    An answer that cannot be used is asked for once more. If that fails too, or if the model refuses, a plan is made
    from the words of the request, and a round stays unjudged, which ends its target with the best round so far. An
    endpoint that fails is an error while planning; later it costs only the verdict.

    Args:
        chat: The model.
    """

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat

    def plan(self, request: Request, cancel: CancelToken | None = None) -> Plan:
        """What the request means.

        Raises:
            EndpointError: If the endpoint cannot be used.
            PromptError: If neither the model nor we find a structure in the request.
        """
        plan, why = self._ask(plan_prompt(request), lambda document, _: read_plan(document), cancel)
        if plan is not None:
            return plan
        return plan_by_words(request.text, f"The plan was made from the request's own words, for {why}.")

    def judge(self, look: Look, cancel: CancelToken | None = None) -> Judgement:
        """The model's verdict, or that there is none and why."""

        def read(document: dict[str, Any], reply: Reply) -> Judgement:
            return read_judgement(document, look.pictures if reply.saw_pictures else (), look.maker)

        try:
            judgement, why = self._ask(judge_prompt(look), read, cancel)
        except EndpointError as fault:
            return Judgement(Verdict.UNJUDGED, str(fault))
        return judgement or Judgement(Verdict.UNJUDGED, f"{why[:1].upper()}{why[1:]}.")

    def _ask(
        self, prompt: Prompt, read: Callable[[dict[str, Any], Reply], T], cancel: CancelToken | None
    ) -> tuple[T | None, str]:
        """What was read from the first or second answer, or None and why."""
        why = ""
        for remark in ("", REMARK):
            reply = self.chat.ask(prompt, cancel, remark.format(why=why))
            if reply.refused:
                return None, "the language model declined to answer"
            try:
                return read(read_json(reply.text), reply), ""
            except EndpointError as fault:
                why = str(fault)
        return None, f"the language model's answers could not be used ({why.rstrip('.')})"
