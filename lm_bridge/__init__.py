"""Language models as state-space models."""

from motes.lm_bridge.chat import render_chat as render_chat
from motes.lm_bridge.checkpoint import (
    Checkpoint as Checkpoint,
    load_checkpoint as load_checkpoint,
    load_model as load_model,
    load_tokenizer as load_tokenizer,
)
from motes.lm_bridge.config import TransformerConfig as TransformerConfig
from motes.lm_bridge.decode import (
    decode as decode,
    decode_batch as decode_batch,
    decoding as decoding,
    stream as stream,
)
from motes.lm_bridge.decoded import Decoded as Decoded, History as History
from motes.lm_bridge.decoding import Budget as Budget, Unit as Unit
from motes.lm_bridge.endpoint import (
    Completion as Completion,
    Endpoint as Endpoint,
    EndpointError as EndpointError,
)
from motes.lm_bridge.genealogy import (
    genealogy_html as genealogy_html,
    plot_genealogy as plot_genealogy,
)
from motes.lm_bridge.language_model import (
    LanguageModel as LanguageModel,
    LMState as LMState,
)
from motes.lm_bridge.rejection import reject as reject
from motes.lm_bridge.remote import (
    RemoteDecoded as RemoteDecoded,
    decode_remote as decode_remote,
)
from motes.lm_bridge.rope import Rope as Rope
from motes.lm_bridge.tabular import (
    ExactPosterior as ExactPosterior,
    TabularLM as TabularLM,
    enumerate_posterior as enumerate_posterior,
    tabular_lm as tabular_lm,
)
from motes.lm_bridge.text_model import (
    NextToken as NextToken,
    Text as Text,
    text_model as text_model,
)
from motes.lm_bridge.token_draws import (
    adaptive_rejection as adaptive_rejection,
    locally_constrained as locally_constrained,
    weighed_after as weighed_after,
)
from motes.lm_bridge.tokenizer import Tokenizer as Tokenizer
from motes.lm_bridge.transformer import Transformer as Transformer
from motes.lm_bridge.transformer_lm import TransformerLM as TransformerLM
