# temporary
import math, functools
import torch
from torch import nn
from einops import rearrange
import test_check_attention as base
from test_check_attention import *
from test_check_attention import Layer, prepared, rule
from minillm.embeddings import rotate
WRONG = base.WRONG = []
from test_check_attention import wrong

def causal(q,k): return causal_mask(q.shape[2],k.shape[2])

# --- causal_mask
@wrong("causal_mask", "future|both")
def window_both_sides(T,S,window=None):
    q,k=torch.arange(S-T,S)[:,None],torch.arange(S)
    if window is None: return k<=q
    return (q-k).abs()<window
@wrong("causal_mask", "window|far")
def window_keeps_the_far(T,S,window=None):
    m=causal_mask(T,S)
    return m if window is None else m & ~causal_mask(T,S,window)
@wrong("causal_mask", "shape|raised")
def square_then_row_slice(T,S,window=None):
    return causal_mask(T,T,window)
@wrong("causal_mask", "first|last")
def square_first_rows(T,S,window=None):
    return causal_mask(S,S,window)[:T]
@wrong("causal_mask", "window")
def window_when_longer_only(T,S,window=None):
    m=causal_mask(T,S)
    if window is not None and T>window: m=causal_mask(T,S,window)
    return m
@wrong("causal_mask", "raised|window|NoneType")
def window_none_not_handled(T,S,window=None):
    return torch.ones(T,S,dtype=torch.bool).tril(S-T).triu(S-T-window+1)
@wrong("causal_mask", "window")
def diagonal_window(T,S,window=None):
    m=causal_mask(T,S)
    return m if window is None else m.triu(-window)
@wrong("causal_mask", "window|keys")
def window_minus_t(T,S,window=None):
    m=causal_mask(T,S)
    return m if window is None else m.triu(T-window)

# --- attention_weights
@wrong("attention_weights", "invert|wrong way|True")
def inverted_inf(q,k,mask):
    return (q@k.mT/math.sqrt(q.shape[-1])).masked_fill(mask,-torch.inf).softmax(-1)
@wrong("attention_weights", "twice")
def softmax_twice(q,k,mask):
    return base.attention.attention_weights(q,k,mask).softmax(-1)
@wrong("attention_weights", "mask|hid")
def masks_the_q(q,k,mask):
    s=q@k.mT/math.sqrt(q.shape[-1])
    return s.masked_fill(~mask,-5.0).softmax(-1)
@wrong("attention_weights", "mask|ignored|causal")
def always_causal(q,k,mask):
    return base.attention.attention_weights(q,k,causal(q,k))
@wrong("attention_weights", "sum|add up|softmax")
def sigmoid_weights(q,k,mask):
    return (q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,-torch.inf).sigmoid()
@wrong("attention_weights", "softmax|sum|add")
def linear_norm(q,k,mask):
    s=(q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,0.0)
    return s/s.sum(-1,keepdim=True)
@wrong("attention_weights", "normali|length|cosine|scores")
def cosine(q,k,mask):
    q,k=nn.functional.normalize(q,dim=-1),nn.functional.normalize(k,dim=-1)
    return base.attention.attention_weights(q,k,mask)
@wrong("attention_weights", "sqrt|head_dim")
def half_width(q,k,mask):
    return (q@k.mT/math.sqrt(q.shape[-1]//2)).masked_fill(~mask,-torch.inf).softmax(-1)
@wrong("attention_weights", "mask|hid")
def mask_multiplied(q,k,mask):
    return (q@k.mT/math.sqrt(q.shape[-1])*mask).softmax(-1)
@wrong("attention_weights", "overflow|large|hid|inf")
def minus_ten(q,k,mask):
    return (q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,-100.0).softmax(-1)
@wrong("attention_weights", "sum|add up|softmax|all")
def softmax_flat(q,k,mask):
    s=(q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,-torch.inf)
    return s.flatten(2).softmax(-1).view_as(s)
@wrong("attention_weights", "gradient|detach")
def detached_scores(q,k,mask):
    return base.attention.attention_weights(q,k.detach(),mask)
@wrong("attention_weights", "random|noise|differ")
def gumbel(q,k,mask):
    s=q@k.mT/math.sqrt(q.shape[-1]); s=s+torch.rand_like(s)*.1
    return s.masked_fill(~mask,-torch.inf).softmax(-1)
@wrong("attention_weights", "row|batch")
def mask_any_row(q,k,mask):
    if mask.ndim==4: mask=mask.any(0)
    return base.attention.attention_weights(q,k,mask)
@wrong("attention_weights", "transpos|wrong way|row t")
def weights_transposed(q,k,mask):
    w=base.attention.attention_weights(q,k,mask)
    return w.mT if w.shape[2]==w.shape[3] else w
@wrong("attention_weights", "sign|wrong way|negative")
def minus(q,k,mask):
    return base.attention.attention_weights(-q,k,mask)
@wrong("attention_weights", "softmax","batch|row")
def softmax_batch(q,k,mask):
    s=(q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,-1e9)
    return s.softmax(0)

# --- heads
@wrong("split_heads", "mix|transpos")
def split_transpose_first(x,head_dim):
    B,T,W=x.shape
    return x.mT.reshape(B,W//head_dim,head_dim,T).reshape(B,W//head_dim,T,head_dim)
@wrong("split_heads", "shape")
def split_chunk(x,head_dim):
    return torch.stack(x.chunk(head_dim,-1),1)
@wrong("split_heads", "shape")
def split_dim2(x,head_dim):
    return torch.stack(x.split(head_dim,-1),2)
@wrong("split_heads", "batch|rows|mix")
def split_batch_mixed(x,head_dim):
    B,T,W=x.shape
    return x.reshape(B,T,-1,head_dim).transpose(0,1).reshape(B,-1,T,head_dim)
@wrong("merge_heads", "order|revers")
def merge_rev(x): return merge_heads(x.flip(1))
@wrong("merge_heads", "mix|position|transpos")
def merge_wrong_transpose(x):
    B,H,T,D=x.shape
    return x.transpose(2,3).reshape(B,T,H*D)
@wrong("merge_heads", "shape")
def merge_into_time(x): return x.transpose(1,2).flatten(1,2)
@wrong("share_heads", "h //|neighbo|order")
def share_flip(x,n_heads): return share_heads(x.flip(1),n_heads)
@wrong("share_heads", "shape")
def share_swapped_division(x,n_heads): return x.repeat_interleave(max(1,x.shape[1]//n_heads),dim=1)
@wrong("share_heads", "shape")
def share_cat_twice(x,n_heads): return torch.cat((x,x),1) if n_heads!=x.shape[1] else x
@wrong("share_heads", "mean|chang|numbers")
def share_mean(x,n_heads): return x.mean(1,keepdim=True).expand(-1,n_heads,-1,-1)
@wrong("share_heads", NEIGHBOURS)
def share_reshape(x,n_heads):
    B,K,S,D=x.shape
    return x.repeat_interleave(n_heads//K,0).reshape(B,n_heads,S,D)

# --- attend
@wrong("attend", "key|value|share")
def attend_v_first(q,k,v,mask=None):
    return attend_torch(q,k,v[:,:1].expand_as(v),mask)
@wrong("attend", "transpos|row t|wrong way")
def attend_wT(q,k,v,mask=None):
    k,v,mask=prepared(q,k,v,mask)
    w=base.attention.attention_weights(q,k,mask)
    return (w.mT if w.shape[-1]==w.shape[-2] else w)@v
@wrong("attend", "fewer|T=|raised|shape")
def attend_square_mask(q,k,v,mask=None):
    if mask is None: mask=causal_mask(q.shape[2],q.shape[2])
    return attend_torch(q,k,v,mask)
@wrong("attend", "mask|or|add")
def attend_mask_or_causal(q,k,v,mask=None):
    c=causal(q,k)
    return attend_torch(q,k,v,c if mask is None else c|mask)
@wrong("attend", "future|hidden|see|mask")
def attend_is_causal_only_square(q,k,v,mask=None):
    return nn.functional.scaled_dot_product_attention(q,k,v,attn_mask=mask,is_causal=mask is None,enable_gqa=True)
@wrong("attend", "sqrt|head_dim")
def attend_prescaled(q,k,v,mask=None):
    return attend_torch(q/math.sqrt(q.shape[-1]),k,v,mask)
@wrong("attend", "head")
def attend_mean_heads(q,k,v,mask=None):
    o=attend_torch(q,k,v,mask); return o.mean(1,keepdim=True).expand_as(o)
@wrong("attend", "one|1|softmax|sum|add")
def attend_softmax_one(q,k,v,mask=None):
    k,v,mask=prepared(q,k,v,mask)
    s=(q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,-torch.inf)
    e=(s-s.amax(-1,keepdim=True)).exp(); return e/(1+e.sum(-1,keepdim=True))@v
@wrong("attend", "quer|residual|added|adds")
def attend_residual(q,k,v,mask=None): return q+attend_torch(q,k,v,mask)
@wrong("attend", "itself|own")
def attend_strict_inf(q,k,v,mask=None):
    if mask is None: mask=causal(q,k).tril(k.shape[2]-q.shape[2]-1)
    k,v,mask=prepared(q,k,v,mask)
    return base.attention.attention_weights(q,k,mask)@v
@wrong("attend", "group|head|share|neighbo")
def attend_q_grouped(q,k,v,mask=None):
    B,H,T,D=q.shape;K=k.shape[1]
    perm=torch.arange(H).view(H//K,K).T.flatten()
    return attend_torch(q[:,perm],k,v,mask)

# --- visible
@wrong("visible","document")
def vis_doc_leq(positions,key_positions,window=None):
    n=(key_positions==0).cumsum(1);T=positions.shape[1]
    return (rule(positions,key_positions,window,documents=False)&(n[:,None]<=n[:,-T:,None]))[:,None]
@wrong("visible","document|quer")
def vis_doc_queries(positions,key_positions,window=None):
    n=(key_positions==0).cumsum(1);m=(positions==0).cumsum(1)
    return (rule(positions,key_positions,window,documents=False)&(n[:,None]==m[:,:,None]))[:,None]
@wrong("visible","window")
def vis_window_keys(positions,key_positions,window=None):
    s=rule(positions,key_positions,None)
    return (s if window is None else s&((positions[:,:,None]-key_positions[:,None]).abs()<=window))[:,None]
@wrong("visible","transpos|shape")
def vis_transposed(positions,key_positions,window=None): return visible(positions,key_positions,window).mT
@wrong("visible","document")
def vis_doc_is_one(positions,key_positions,window=None):
    n=(key_positions==1).cumsum(1);T=positions.shape[1]
    return (rule(positions,key_positions,window,documents=False)&(n[:,None]==n[:,-T:,None]))[:,None]
@wrong("visible","padding")
def vis_pad_all(positions,key_positions,window=None):
    return (rule(positions,key_positions,window,padding=False)&~((key_positions<0)&True)[:,None]|(positions<0)[:,:,None])[:,None]
@right("visible")
def vis_window_by_place(positions,key_positions,window=None):
    T,S=positions.shape[1],key_positions.shape[1]
    return (rule(positions,key_positions,None)&causal_mask(T,S,window))[:,None]
@wrong("visible","document|position|place")
def vis_order_by_place(positions,key_positions,window=None):
    T,S=positions.shape[1],key_positions.shape[1]
    return rule(positions,key_positions,window,documents=False)[:,None]&causal_mask(T,S)

# --- Attention
@wrong("Attention","causal|future|position|mask")
class MaskTransposed(Layer):
    def mask(self,*a):
        m=super().mask(*a); return m.mT if m.shape[-1]==m.shape[-2] else m
@wrong("Attention","twice")
class RotatesTwice(Layer):
    def place(self,q,k,v,angles):
        q,k,v=super().place(q,k,v,angles); return rotate(q,angles),rotate(k,angles),v
@wrong("Attention","rotat")
class RotatesBack(Layer):
    def place(self,q,k,v,angles): return super().place(q,k,v,(angles[0],-angles[1]))
@wrong("Attention","rotat|angles")
class CosSinSwapped(Layer):
    def place(self,q,k,v,angles): return super().place(q,k,v,angles[::-1])
@wrong("Attention","scale|sqrt|multipl")
class ScalesQueries(Layer):
    def place(self,q,k,v,angles):
        q,k,v=super().place(q,k,v,angles); return q/self.head_dim**.5,k,v
@wrong("Attention","cache|twice|rotat")
class RotatesCachedAgain(Layer):
    def recall(self,k,v,positions,cache,layer):
        return super().recall(k,v,positions,cache,layer)
    def forward(self,x,angles,positions=None,cache=None,layer=0):
        q,k,v=self.place(*self.project(x),angles)
        n=k.shape[2]
        k,v,kp=self.recall(k,v,positions,cache,layer)
        if cache is not None: k=torch.cat((k[:,:,:-n],rotate(k[:,:,-n:],angles)),2)
        return self.finish(self.attend(q,k,v,self.mask(q.shape[2],k.shape[2],positions,kp,cache)),x)
@wrong("Attention","first|last|cache")
class CacheMaskFirst(Layer):
    def mask(self,T,S,positions,kp,cache):
        if positions is None: return torch.ones(T,S,dtype=torch.bool).tril().triu(1-(self.window or S))
        return super().mask(T,S,positions,kp,cache)
@wrong("Attention","key|positions|cache|shape")
class KeyPositionsOwn(Layer):
    def mask(self,T,S,positions,kp,cache): return super().mask(T,S,positions,positions,cache)
@wrong("Attention","position")
class PositionsOnlyWithCache(Layer):
    def mask(self,T,S,positions,kp,cache): return super().mask(T,S,positions if cache is not None else None,kp,cache)
@wrong("Attention","window")
class WindowOff(Layer):
    def __init__(self,*a,window=None,**k): super().__init__(*a,window=None if window is None else window+1,**k)
@wrong("Attention","attend")
class CallsModuleAttend(Layer):
    def forward(self,x,angles,positions=None,cache=None,layer=0):
        self.__dict__['attend']=attend_torch; return super().forward(x,angles,positions,cache,layer)
@wrong("Attention","normal|input|norm")
class PreNorm(Layer):
    def project(self,x): return super().project(nn.functional.rms_norm(x,x.shape[-1:]))
@wrong("Attention","swap|query|key")
class QKSwapped(Layer):
    def project(self,x):
        q,k,v=super().project(x)
        return (k,q,v) if q.shape==k.shape else (q,k,v)
@wrong("Attention","neighbo|h //")
class RepeatsKV(Layer):
    def forward(self,x,angles,positions=None,cache=None,layer=0):
        q,k,v=self.place(*self.project(x),angles)
        k,v,kp=self.recall(k,v,positions,cache,layer)
        n=q.shape[1]//k.shape[1]
        return self.finish(self.attend(q,k.repeat(1,n,1,1),v.repeat(1,n,1,1),self.mask(q.shape[2],k.shape[2],positions,kp,cache)),x)
@wrong("Attention","same|own|share|one and")
class TiedKV(Layer):
    def __init__(self,*a,**k): super().__init__(*a,**k); self.value=self.key
@wrong("Attention","gradient|detach")
class DetachedV(Layer):
    def place(self,q,k,v,angles):
        q,k,v=super().place(q,k,v,angles); return q,k,v.detach()
@wrong("Attention","twice|output")
class OutputTwice(Layer):
    def finish(self,h,x):
        y=super().finish(h,x); return self.output(y) if y.shape[-1]==self.output.in_features else y
@wrong("Attention","query_norm|both|norm")
class NormBoth(Layer):
    def __init__(self,*a,query_norm=None,key_norm=None,**k):
        if query_norm is None or key_norm is None: query_norm=key_norm=None
        super().__init__(*a,query_norm=query_norm,key_norm=key_norm,**k)
@wrong("Attention","rotat|cache|angle|position")
class RotatesOwnAngles(Layer):
    def place(self,q,k,v,angles):
        from minillm.embeddings import rotary_angles,rotary_frequencies
        return super().place(q,k,v,rotary_angles(torch.arange(q.shape[2]),rotary_frequencies(q.shape[3])))
@wrong("Attention","bool|dtype")
class FloatMask(Layer):
    def mask(self,*a): return torch.zeros(()).masked_fill(~super().mask(*a),-torch.inf)
@wrong("Attention","cache|before|update")
class CacheTwice(Layer):
    def recall(self,k,v,positions,cache,layer):
        if cache is not None: cache.update(layer,k,v,positions)
        return super().recall(k,v,positions,cache,layer)
@wrong("Attention","cache|mask|window")
class WindowNotWithCache(Layer):
    def mask(self,T,S,positions,kp,cache):
        if cache is not None: return visible(positions,kp) if positions is not None and kp is not None else causal_mask(T,S)
        return super().mask(T,S,positions,kp,cache)
@wrong("Attention","nonlin|relu|activ")
class Activated(Layer):
    def finish(self,h,x): return super().finish(h,x).relu()
@wrong("Attention","default|attend|scale")
class BadDefaultAttend(Layer):
    def __init__(self,*a,attend=None,**k):
        super().__init__(*a,attend=attend or (lambda q,k,v,m:attend_torch(q*2,k,v,m)),**k)
@wrong("Attention","order|revers|head")
class HeadsFlippedAtEnd(Layer):
    def finish(self,h,x): return super().finish(h.flip(1),x)
@wrong("Attention","head_dim|d_model|shape|output")
class OutputWrongWay(Layer):
    def __init__(self,d_model,n_heads,n_kv_heads,head_dim,**k):
        super().__init__(d_model,n_heads,n_kv_heads,head_dim,**k)
        self.output=nn.Linear(d_model,n_heads*head_dim,bias=False)
@wrong("Attention","state|call|kept")
class KeepsMask(Layer):
    def forward(self,x,angles,positions=None,cache=None,layer=0):
        y=super().forward(x,angles,positions,cache,layer)
        self.__dict__['n']=self.__dict__.get('n',0)+1
        return y*self.__dict__['n']
