"""Graft: a laboratory for fine-tuning language models in JAX.

Letters for dimensions, the same everywhere (docstrings, comments, einsum):

    B rows of a batch      D width of the model       V vocabulary
    T tokens of a row      H attention heads          C classes
    M examples of a row    K width of one head        L layers
    N examples of a step   F hidden width of an MLP   S supervised positions

A batch is a dict of arrays (int32 unless said otherwise):

    tokens, positions, segments, types [B, T]   segments: 0 is padding, m + 1 the row's example m;
                                                positions restart at 0 with every example
    words [B, T]                                number of the word within its example, -1 for none
    tags [B, T]                                 of tagged words: the tag's number at a word's first
                                                token, -1 elsewhere
    ids, starts, lengths, labels [B, M]         ids: the row of the data set, -1 for an empty place
    bytes, sources [B, M]                       of a corpus: UTF-8 bytes of an example's text, and
                                                which source of a mixture it is from
    weights [B, M] float32                      0 for an empty place
    domains [B, M]                              of two domains: 0 the source, 1 the target
    groups [B, M]                               of data with a column of groups: its value's number
    progress [B, 1] float32                     in training: the share of the run that is done
    delta [B, T, D] float32                     added to the word embeddings, where it is there
"""

__version__ = "0.1.0"
