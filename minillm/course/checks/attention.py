"""The check of chapter attention, in the modules beside this one; each stands on those before it in the chapter."""

from minillm.course.checks import attention_heads as attention_heads
from minillm.course.checks import attention_masks as attention_masks
from minillm.course.checks import attention_visible as attention_visible
from minillm.course.checks import attention_whole as attention_whole
