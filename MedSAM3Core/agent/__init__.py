"""The MedSAM-3 Agent: requests in plain words, planned, segmented, looked at and corrected within bounds.

The parts: `facts` (what steps hand to each other), `machine` (which step comes next), `acting` (all that a verdict can
bring about), `pictures` and `scoring` (what a judge sees), `run` (one blocking call), `advisor` and `chat` (a language
model as the judge), `disclosure` and `transcript` (what leaves the machine, and the record of it). See
``docs/agent.md``.
"""

from __future__ import annotations

from MedSAM3Core.agent.facts import Judgement, Outcome, Plan, Round, Target, Verdict
from MedSAM3Core.agent.judging import Judge, Look, Request, SegmenterSession
from MedSAM3Core.agent.machine import Machine
from MedSAM3Core.agent.run import run_agent

__all__ = [
    "Judge",
    "Judgement",
    "Look",
    "Machine",
    "Outcome",
    "Plan",
    "Request",
    "Round",
    "SegmenterSession",
    "Target",
    "Verdict",
    "run_agent",
]
